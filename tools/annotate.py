"""`ppvilg annotate` from a clone, also where ppvilg is not installed: python tools/annotate.py --help."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # instead of this folder, whose names other packages have too

from ppvilg.commands import start  # noqa: E402

if __name__ == "__main__":
    start("annotate")
