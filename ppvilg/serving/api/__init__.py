"""The HTTP side of the service: one file a protocol, all over `ppvilg.serving.service`. Loads no Paddle."""

from .app import build_app

__all__ = ["build_app"]
