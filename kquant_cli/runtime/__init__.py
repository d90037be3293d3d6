"""Models that run, from the codes of a bundle or dense. Public names load on first use (see kquant_autoload.py)."""

from importlib import import_module
from typing import Any

_HOMES = {
    "KashinEmbedding": "embedding",
    "KashinLinear": "linear",
    "load": "load_bundle",
    "load_model": "loading",
    "running_dtype": "loading",
}
__all__ = [*_HOMES]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
