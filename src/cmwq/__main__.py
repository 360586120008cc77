"""`python -m cmwq` is the command `cmwq`."""

import sys

from _cmwq_command import main

if __name__ == "__main__":
    sys.exit(main())
