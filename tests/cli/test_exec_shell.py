"""`cmwq exec --shell`: an item is one text wherever it stands, or is refused; and what is shown does the same."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cmwq.cli.command import template
from cmwq.cli.output import Refusal

from .conftest import Cli

SHELLS = [shell for shell in (("dash",), ("bash", "--posix"), ("busybox", "sh")) if shutil.which(shell[0])]

# What lines are made of. Most of what comes of it is refused, or is no line for a shell; the rest is read as shells do.
TOKENS = [
    *("printf '<%s>' ", 'printf "<%s>" ', "{}", "{}", "{}", "{#}", "{/}", "'", '"', "`", "$(", ")", "(", "$((", "))"),
    *("${x:-", '"${x%', "}", " ", ";", "#", "\n", "\\", "$", "$x", "x=", "=", "~", "|", "a", "1", "[", "]", ",", "$'"),
    *("case a in a*) ", "case {} in ", "esac", ";; esac", "if true; then ", " fi ", " >&2 ", " b) ", "<<E", "&& "),
    *("f() { ", "; }; f ", "x=(", "x+=( [", "set -- k; ", "for i in ", ";do ", ";done "),
]
EVIL = "q\"'$(touch${IFS}pwned)`touch${IFS}pwned`}\\#)Q;&|<!~(["


def ran(shell: tuple[str, ...], argv: list[str], folder: Path) -> tuple[int, bytes]:
    done = subprocess.run([*shell, *argv[1:]], cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, timeout=60)
    return done.returncode, done.stdout


@pytest.mark.parametrize("shell", SHELLS)
@settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(tokens=st.lists(st.sampled_from(TOKENS), min_size=1, max_size=12), harmless=st.sampled_from(["qZ", "if", "x=1"]))
def test_a_line_that_is_not_refused_takes_every_item_as_it_is(
    shell: tuple[str, ...], tokens: list[str], harmless: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    try:
        line = template(["".join(tokens)], True, None)
    except Refusal:
        return
    folder = tmp_path_factory.mktemp("run")
    status, printed = ran(shell, line.argv("qZrW", 1), folder)
    if "$$" not in "".join(tokens):  # a process id
        assert ran(shell, line.argv(EVIL, 1), folder) == (status, printed.replace(b"qZrW", EVIL.encode()))
        assert not (folder / "pwned").exists()
        shown = line.shown(harmless, 1)
        if shown.startswith("/bin/sh"):  # exactly what is run
            return
        assert ran(shell, ["sh", "-c", shown, "sh"], folder) == ran(shell, line.argv(harmless, 1), folder)


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    ("line", "printed"),
    [
        ('printf "<%s>" {}#{} {}', "<a *#a *><a *>"),
        ("printf '<%s>' {}#'{}'", "<a *#a *>"),
        ('show() { printf "<%s>" {}; }; show x; set -- y z; shift; printf "<%s>" {} "$1"', "<a *><a *><z>"),
        ('set -- y; printf "<%s>" "$@" {}', "<y><a *>"),
        ('printf "<%s>" "$#" {}', "<0><a *>"),
        ('printf "<%s>" "$(case {} in a*) printf "%s" {};; esac)"', "<a *>"),
        ('printf "<%s>" "$(case x in y) ;; (x) printf %s {}; esac)" {}', "<a *><a *>"),
        ('printf "<%s>" "$(echo case)" {}', "<case><a *>"),
        ('printf "<%s>" "${x:-{}}" ${x:-{}}', "<a *><a *>"),
        ('y=a__; printf "<%s>" "${y%{}}" ${y%{}}', "<a__><a__>"),
        ('printf "<%s>" $(( ({#} + 1) * (2) )) {} # {} it\'s', "<4><a *>"),
        ('printf "<%s>" "`printf "%s" {} # {}`" {}', "<a *><a *>"),
        ('printf "<%s>" {} >&1 2>&1; : <<E {}\nit\'s\nE', "<a *>"),
        ('sh -c \'printf "<%s>" "${_cmwq_1-not exported}"\'; : {}', "<not exported>"),
    ],
)
def test_what_a_placeholder_means(shell: tuple[str, ...], line: str, printed: str, tmp_path: Path) -> None:
    (tmp_path / "a b").touch()
    assert ran(shell, template([line], True, None).argv("a *", 1), tmp_path) == (0, printed.encode())


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("echo $(( {} ))", "in arithmetic"),
        ('echo $(( 1 + ("{/}") ))', "in arithmetic"),
        ("echo $(( ${x:-{}} ))", "in arithmetic"),
        ("(( {} ))", "in arithmetic"),
        ("a[{}]=1", "in arithmetic"),
        ("a=([{}]=1)", "in the list of an array"),
        ("a=(x [{}]=1)", "in the list of an array"),
        ("declare -a a+=(x\n# )\n[{}]=y)", "in the list of an array"),
        ('a=("[{}]=1")', "in the list of an array"),
        ("echo ${x:{}}", "expansion"),
        ("echo ${}", "expansion"),
        ('echo "$[ {} ]"', "$["),
        ("cat <<E\n{}\nE", "here-document"),
        ("cat <<{}\nE", "here-document"),
        ("echo \"${x%'{}'}\"", 'quotes within "${...}"'),
        ('echo "${x:-"{}"}"', 'quotes within "${...}"'),
        ("echo `echo \\`echo {}\\``", "backslash or quotes within `...`"),
        ("echo $'{}'", "$'...'"),
        ("echo $'\\'' {}", "$'...'"),
        ("echo \\{}", "after a backslash"),
        ("echo a) {}", "that nothing opened"),
        ('echo "{}', "opens \" and doesn't close it"),
        ("echo $(echo {}", "opens ( and doesn't close it"),
        ("echo $((1); echo {})", "(( without ))"),
    ],
)
def test_where_an_item_would_be_read_once_more_it_is_refused(line: str, why: str) -> None:
    with pytest.raises(Refusal) as raised:
        template([line], True, None)
    assert why in str(raised.value)
    assert "\n" not in str(raised.value)
    assert raised.value.status == 2


@pytest.mark.skipif(("bash", "--posix") not in SHELLS, reason="no bash here: others have no arrays")
def test_after_the_list_of_an_array_and_in_a_command_within_it(tmp_path: Path) -> None:
    line = 'a=(case in [0]="x )" $(printf %s {}) [{#}]=k); printf "<%s>" "${a[@]}" {}'
    assert ran(("bash", "--posix"), template([line], True, None).argv("a *", 3), tmp_path)[0] == 0


def test_an_item_that_begins_with_a_dash_is_a_line_for_the_shell(cli: Cli) -> None:
    done = cli("exec", "--shell", input=b"-e\n+x\necho fine\n")
    assert (done.returncode, done.stdout) == (1, b"fine\n")
    assert [line for line in done.stderr.splitlines() if b"cmwq exec: item" in line] == [
        b"cmwq exec: item 1 '-e': exit status 127",
        b"cmwq exec: item 2 '+x': exit status 127",
    ]


def test_arithmetic_is_one_line_and_status_2(cli: Cli, folder: Path) -> None:
    done = cli("exec", "--shell", "a[$(touch pwned)]", "--", "echo $(( {} ))")
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.startswith(b"cmwq exec: error: --shell: a placeholder in arithmetic")
    assert done.stderr.count(b"\n") == 1
    assert not (folder / "pwned").exists()


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    ("line", "item"),
    [
        ('x=`basename "{}" .txt`; echo $x', "$(touch pwned)"),
        ("echo hi # {}", "\ntouch pwned\n"),
        ("echo `echo {}`", "touch pwned"),
        ('echo "${X:-{}}"', "a}b"),
        ("a=x; echo $a{} \"$a{}\" '$a{}'", "b"),
        ("export {}=y; echo $x", "x"),
        ("echo a {}>out; cat out", "2"),
        ("{} | cat", "if"),
        ("printf %s {} \\", "a"),
        (": {}; cat <<E\nx\n", "a"),
        ("echo ~{}", "root"),
        ("echo {}", ""),
    ],
)
def test_what_is_shown_does_what_is_run(shell: tuple[str, ...], line: str, item: str, tmp_path: Path) -> None:
    command = template([line], True, None)
    executed = ran(shell, command.argv(item, 1), tmp_path)
    # With another line after it, as `--dry-run` prints them.
    _, typed = ran(shell, ["sh", "-c", f"{command.shown(item, 1)}\necho +$?", "sh"], tmp_path)
    printed, _, status = typed.rpartition(b"+")
    assert (int(status), printed) == executed
    assert not (tmp_path / "pwned").exists()


def test_a_harmless_item_is_shown_in_the_line(cli: Cli, folder: Path) -> None:
    line = 'sort {} | uniq -c > {.}.counts; echo "{}" # {/}'
    shown = cli("exec", "--dry-run", "--shell", "a/b.csv", "$x", "--", line).stdout.splitlines()
    assert shown[0] == b'sort a/b.csv | uniq -c > a/b.counts; echo "a/b.csv" # b.csv'
    assert shown[1].startswith(b"/bin/sh -c ")
    assert shown[1].endswith(b" sh '$x' '$x' '$x'")
    cli("exec", "--shell", "--job-log", "jobs", "$x", "--", "echo {}")
    assert b'"command": "/bin/sh -c ' in (folder / "jobs").read_bytes()


def test_a_program_is_not_shown_as_an_assignment_or_a_keyword() -> None:
    assert template(["x=y"], False, None).shown("b c", 1) == "'x=y' 'b c'"
    assert template(["{}", "a=b"], False, None).shown("if", 1) == "'if' a=b"
