"""Let `ppdiffusers.DiffusionPipeline.from_pretrained(folder)` find our pipeline class after `import ppvilg`.

ppdiffusers looks the class named in model_index.json up as an attribute of its own top module. Importing ppdiffusers
costs seconds, so `import ppvilg` does not: when ppdiffusers is there already the attribute is added at once, else right
after it has been imported. The attribute is lazy either way, because ppdiffusers may be imported from the middle of
one of our own modules, when the pipeline class cannot be imported yet.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from types import ModuleType

HOST = "ppdiffusers"
EXPORTED = {"ErnieViLG2Pipeline": "ppvilg.pipelines"}


def add_lazy_names(host: ModuleType) -> None:
    """Give the module `host` the attributes in EXPORTED, each imported from its own module on first use."""

    class WithOurNames(type(host)):
        def __getattr__(self, name: str):
            if name not in EXPORTED:
                return super().__getattr__(name)
            value = getattr(importlib.import_module(EXPORTED[name]), name)
            setattr(self, name, value)
            return value

    host.__class__ = WithOurNames


class _LoaderThenNames(importlib.abc.Loader):
    """The loader found for the host, with one step after it."""

    def __init__(self, loader: importlib.abc.Loader) -> None:
        self.loader = loader

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        # The host swaps itself for another object in sys.modules while it executes.
        add_lazy_names(sys.modules[module.__name__])

    def __getattr__(self, name: str):
        return getattr(self.loader, name)  # get_data, is_package, ...: what inspect and pkgutil ask of a loader


class _HostFinder(importlib.abc.MetaPathFinder):
    """Answers for the host alone, once: hands its import to the ordinary finders and wraps the loader they return."""

    def find_spec(self, fullname: str, path, target=None) -> importlib.machinery.ModuleSpec | None:
        if fullname != HOST:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _LoaderThenNames(spec.loader)
        return spec


def register() -> None:
    """Make our pipeline names known to ppdiffusers, now or as soon as somebody imports it; safe to call again."""
    if HOST in sys.modules:
        add_lazy_names(sys.modules[HOST])
    elif not any(isinstance(finder, _HostFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _HostFinder())
