"""Evaluate a model: python tools/evaluate.py -c configs/evaluation/objects.yml -o model=emoji64.

The same as `python -m ppvilg.evaluation`, also where ppvilg is not installed.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ppvilg.evaluation.__main__ import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
