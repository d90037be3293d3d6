"""The versions that a result depends on."""

import torch
import transformers

from kquant_cli import __version__


def versions() -> dict[str, str]:
    """Package name -> version, for a result's JSON."""
    return {"kquant_cli": __version__, "torch": torch.__version__, "transformers": transformers.__version__}
