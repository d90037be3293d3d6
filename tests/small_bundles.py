"""Small bundles of real architectures, for the tests of the models that run from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tiny_models
import torch

from kquant_cli.bundle import open_bundle
from kquant_cli.checkpoint import open_checkpoint
from kquant_cli.compress import pipeline
from kquant_cli.compress.plan import make_plan
from kquant_cli.config import CompressConfig
from kquant_cli.runtime.decoded_model import load_decoded

QUICK: dict[str, dict[str, Any]] = {
    "annealed": {"effort": "fast", "calibration": "none"},
    "greedy": {"max_iter": 5, "restarts": 1, "kmeans_iter": 10},
    "kmeans": {"restarts": 1, "kmeans_iter": 10},
    "uniform": {},
}


def bundle_of(arch: str, folder: Path, model: dict[str, Any] | None = None, **settings: Any) -> Path:
    """Compress the tiny random model of `arch`; `model` goes into its config, the rest are settings of the encoder."""
    source = tiny_models.make(arch, folder / "source", **(model or {}))
    return compress(source, folder / "bundle", **settings)


def compress(source: Path, out: Path, **settings: Any) -> Path:
    """Compress `source` into the folder `out` and return it."""
    config = CompressConfig(**{**QUICK[settings.get("encoder", "annealed")], **settings})
    pipeline.compress(make_plan(open_checkpoint(source), config), out)
    return out


def twin_of(bundle: Path, auto_class: str, dtype: torch.dtype = torch.float32) -> Any:
    """The dense twin of a bundle: what its codes are to compute."""
    return load_decoded(open_bundle(bundle), auto_class, None, dtype)[0].eval()


def logits(model: Any, tokens: torch.Tensor | None = None) -> torch.Tensor:
    """Of a few seeded tokens, without gradients."""
    with torch.no_grad():
        return model(tiny_models.tokens() if tokens is None else tokens).logits


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference over the largest value."""
    return float((found.double() - expected.double()).abs().max() / expected.double().abs().max())
