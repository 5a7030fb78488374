"""Lets `ppdiffusers.DiffusionPipeline.from_pretrained(folder)` find our pipeline class after `import ppvilg`.

ppdiffusers looks the class that model_index.json names up among its own attributes. An assignment cannot do it: at
`import ppvilg` it would cost the seconds of importing ppdiffusers, and in ppvilg.pipelines it would come too late for
who imports ppdiffusers alone. The attribute is lazy, because ppdiffusers may be imported from the middle of one of our
own modules, when the pipeline class cannot be imported yet.
"""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

HOST = "ppdiffusers"
EXPORTED = {"ErnieViLG2Pipeline": "ppvilg.pipelines"}


def add_lazy_names(host: ModuleType) -> None:
    """Give the module `host` the attributes in EXPORTED, each imported from its own module on first use."""

    class WithOurNames(type(host)):
        def __getattr__(self, name: str):
            if name.startswith("AutoPipelineFor"):  # which look classes up in tables that our module adds ours to
                importlib.import_module(EXPORTED["ErnieViLG2Pipeline"])
            if name not in EXPORTED:
                return super().__getattr__(name)
            value = getattr(importlib.import_module(EXPORTED[name]), name)
            setattr(self, name, value)
            return value

    host.__class__ = WithOurNames


class _OnImport:
    """Finder that answers for the host alone, once: what the ordinary finders say, with one step after its loading."""

    @classmethod
    def find_spec(cls, name: str, path=None, target=None):
        if name != HOST:
            return None
        sys.meta_path.remove(cls)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def load_and_add(module: ModuleType) -> None:
                load(module)
                add_lazy_names(sys.modules[HOST])  # not `module`: the host swaps itself for another object meanwhile

            spec.loader.exec_module = load_and_add
        return spec


def register() -> None:
    """Make our pipeline names known to ppdiffusers, now or as soon as somebody imports it; safe to call again."""
    if HOST in sys.modules:
        add_lazy_names(sys.modules[HOST])
    elif _OnImport not in sys.meta_path:
        sys.meta_path.insert(0, _OnImport)
