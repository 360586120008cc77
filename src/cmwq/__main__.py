"""`python -m cmwq` is the command `cmwq`."""

import sys

from cmwq.cli import main

if __name__ == "__main__":
    sys.exit(main())
