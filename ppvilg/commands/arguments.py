"""What the command lines have in common."""

from __future__ import annotations

import argparse


def new_parser(name: str, description: str) -> argparse.ArgumentParser:
    """Parser of the command `ppvilg NAME`; the description keeps its lines."""
    return argparse.ArgumentParser(
        prog=f"ppvilg {name}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
