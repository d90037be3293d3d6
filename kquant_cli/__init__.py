"""kquant: compress Hugging Face language models with Kashin quantisation (arXiv 2404.09737).

Public names load on first use, so that importing the package stays light. After it, transformers' `from_pretrained`
loads bundles.
"""

from importlib import import_module
from typing import Any

import kquant_autoload

__version__ = "0.1.0"

_HOMES = {
    "CompressConfig": "kquant_cli.config",
    "EncoderConfig": "kquant_cli.config",
    "EncodedMatrix": "kquant_cli.encoded",
    "KQuantError": "kquant_cli.errors",
    "KashinLinear": "kquant_cli.runtime.linear",
    "encode": "kquant_cli.encoders",
    "load": "kquant_cli.runtime.load_bundle",
    "make_basis": "kquant_cli.bases",
    "open_bundle": "kquant_cli.bundle",
}
__all__ = [*_HOMES, "__version__"]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


kquant_autoload.wait()
