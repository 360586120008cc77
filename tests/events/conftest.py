"""The random programs of `tests/sim` are run here once more, observed."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent / "sim"))
