"""Models that run: a dense checkpoint, or a bundle decoded into a dense model."""

from kquant_cli.runtime.folders import checkpoints_within
from kquant_cli.runtime.loading import LoadedModel, load_model

__all__ = ["LoadedModel", "checkpoints_within", "load_model"]
