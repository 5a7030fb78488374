"""Makes `tests` the folder of this project: the wheel of ppdiffusers brings a package of that name."""

from __future__ import annotations

import sys
import types
from pathlib import Path

_package = types.ModuleType("tests")
_package.__path__ = [str(Path(__file__).resolve().parents[1])]
sys.modules["tests"] = _package
