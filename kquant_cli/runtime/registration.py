"""transformers learns our quantiser as soon as both packages are imported, in whatever order.

`import kquant_cli` stays light: where transformers' quantisers are not there yet, a finder waits for their import.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

WATCHED = "transformers.quantizers.auto"


def register_when_imported() -> None:
    """Register now where transformers' quantisers are imported, else at the moment when they are."""
    if WATCHED in sys.modules:
        _register()
    elif not any(isinstance(finder, _Waiting) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Waiting())


def _register() -> None:
    from kquant_cli.runtime.quantizer import register  # noqa: PLC0415 - imports torch and transformers

    register()


class _Waiting(importlib.abc.MetaPathFinder):
    """Finds the watched module as the others do, and has its loader register us after it."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != WATCHED:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            spec.loader = _ThenRegister(spec.loader)
        return spec


class _ThenRegister(importlib.abc.Loader):
    """The module's own loader, and then our registration."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        _register()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)
