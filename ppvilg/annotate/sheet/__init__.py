"""The contact sheet: what training will make of annotated samples, to be looked at before it is started."""

from .show import Settings, show

__all__ = ["Settings", "show"]
