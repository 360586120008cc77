"""The directive `command-help SUBCOMMAND`: what `cmwq SUBCOMMAND --help` prints, at the time when the site is built."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

from docutils import nodes
from docutils.parsers.rst import Directive


class CommandHelp(Directive):
    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        command = [sys.executable, "-m", "cmwq", self.arguments[0], "--help"]
        environment = {**os.environ, "COLUMNS": "88", "NO_COLOR": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise self.error(f"{' '.join(command)} failed: {done.stderr}")
        return [nodes.literal_block(done.stdout, done.stdout, language="text")]


def setup(app: Any) -> dict[str, bool]:
    app.add_directive("command-help", CommandHelp)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
