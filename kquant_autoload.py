"""Bundles load in every program: transformers, accelerate and PEFT learn of kquant when they are imported.

`kquant_autoload.pth`, which is installed with kquant, imports this module at the start of every interpreter (unless
KQUANT_AUTOLOAD=0), and `import kquant_cli` does. That costs about a millisecond: a finder waits for the modules that
are to learn of us, and ours are imported only then.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # typing's own would have to be imported
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

# What is waited for, and our module that registers itself there when it is imported.
REGISTERING = {
    "transformers.quantizers.auto": "kquant_cli.runtime.quantizer",
    "accelerate.utils.modeling": "kquant_cli.runtime.accelerate_loading",
    "peft.tuners.lora.model": "kquant_cli.runtime.peft_lora",
}


def wait() -> None:
    """Register now where a module is imported, else at the moment when it is."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
    for watched in REGISTERING:
        if watched in sys.modules:
            _register(watched)


def _register(watched: str) -> None:
    """Import our module; what fails there must not take transformers or PEFT from programs without a bundle."""
    import importlib  # noqa: PLC0415 - not at the start of every interpreter

    try:
        importlib.import_module(REGISTERING[watched])
    except Exception as error:
        import warnings  # noqa: PLC0415

        warnings.warn(
            f"kquant cannot register with {watched.partition('.')[0]}, so that bundles will not load there "
            f"({type(error).__name__}: {error}); install kashin-quant again, or uninstall it",
            stacklevel=2,
        )


class _Finder:
    """Finds the watched modules as the others do, and has their loaders register us after them."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in REGISTERING:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        spec = next((found for finder in others if (found := finder.find_spec(name, path, target))), None)
        if spec is not None and spec.loader is not None:
            loader: Any = _Loader(spec.loader, name)
            spec.loader = loader
        return spec


class _Loader:
    """A module's own loader, and then our registration."""

    def __init__(self, loader: Any, name: str) -> None:
        self._loader, self._name = loader, name

    def create_module(self, spec: ModuleSpec) -> Any:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        _register(self._name)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)


wait()
