"""Imported first by every room that computes: one message about missing or wrong packages instead of a traceback."""

from ppvilg._versions import DRAWING, check_versions

check_versions(DRAWING)
