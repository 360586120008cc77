"""Every figure that cmwq is measured by, on the interpreter that runs this."""

from __future__ import annotations

import argparse
import sys

from cycle import profile
from measure import Report

SECTIONS = {"profile": profile}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--only", action="append", choices=list(SECTIONS))
    parser.add_argument("--quick", action="store_true", help="little of everything: a smoke test, not a measurement")
    options = parser.parse_args()
    report = Report()
    for name in options.only or SECTIONS:
        SECTIONS[name](report, options.quick)
    return 0


if __name__ == "__main__":
    sys.exit(main())
