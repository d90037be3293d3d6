"""The versions that a result depends on."""

from importlib.metadata import version

import torch
import transformers

from kquant_cli import __version__


def versions(*packages: str) -> dict[str, str]:
    """Package name -> version, for a result's JSON: what every result depends on, and `packages` besides."""
    always = {"kquant_cli": __version__, "torch": torch.__version__, "transformers": transformers.__version__}
    return always | {package: version(package) for package in packages}
