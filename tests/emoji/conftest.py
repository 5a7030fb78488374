"""The shipped detector."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def detector():
    from ppvilg.emoji.detector import Detector

    return Detector.load()
