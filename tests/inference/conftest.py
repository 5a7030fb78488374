"""The tiny pipeline and its bundle of tests/bundles.py as fixtures of this folder."""

from tests.bundles import bundle, components, tiny  # noqa: F401
