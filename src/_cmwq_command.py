"""The way in of the installed command `cmwq`.

It stands beside the package, because to import anything of the package imports all of it, which takes a tenth of a
second, and Ctrl-C meanwhile would end in a traceback.

Guarantees: from its first line to the end of the process Ctrl-C ends the process by the signal and without a word,
unless a subcommand says otherwise while it runs. Where the signal is ignored it stays ignored. (Before that there is
only the interpreter's own start. `python -m cmwq` imports the package before anything of this is asked.)
"""

import signal


def main() -> int:
    """Run the command with the arguments of this process, and return the exit status."""
    heard = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not heard:
        from cmwq.cli import main as command

        return command()
    # The kernel's own way, and no exception: an import could take that for something else, or print it.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from cmwq.cli import main as command
    from cmwq.cli.signals import end_by

    try:
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            return command()
        finally:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
    except KeyboardInterrupt:  # before the command could catch it, or after its end
        end_by(signal.SIGINT)
