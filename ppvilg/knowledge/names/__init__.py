"""What detected objects are called: tables of names and kinds, and which objects a caption names."""

from .mentions import is_chinese
from .reading import NamesError, shipped_tables
from .table import NameTable, open_names

__all__ = ["NameTable", "NamesError", "is_chinese", "open_names", "shipped_tables"]
