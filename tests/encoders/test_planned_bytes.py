"""What a dry run says that a matrix takes is what it takes, for every encoder and every size of weights."""

import math

import pytest
import torch

from kquant_cli.config import EncoderConfig
from kquant_cli.encoders import ENCODERS, encode, encoded_bytes


def possible(name, levels):
    return ENCODERS[name].refusal(levels, ENCODERS[name].Settings()) is None


SETTINGS = [
    *({"encoder": name, "levels": levels} for name in ENCODERS for levels in (2, 5, 16) if possible(name, levels)),
    {"encoder": "annealed", "side": "output"},
    {"encoder": "greedy", "form": "vector"},
    {"encoder": "uniform", "group_size": 0},
    {"encoder": "uniform", "group_size": 24},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: " ".join(map(str, settings.values())))
@pytest.mark.parametrize("factor", [1e-30, 1e-6, 1.0, 1e10], ids=lambda factor: f"{factor:g}")
def test_planned_is_stored(settings, factor):
    quick = {"effort": "fast", "max_iter": 3, "restarts": 1, "kmeans_iter": 3}
    config = EncoderConfig(**quick, **settings)
    weight = factor * torch.randn(32, 64, generator=torch.Generator().manual_seed(0))
    encoded = encode(weight, config)
    stored = sum(tensor.numel() * tensor.element_size() for tensor in encoded.to_tensors().values())
    assert encoded_bytes((32, 64), config) == stored == encoded.bits_per_weight * 32 * 64 / 8
    assert encoded.layout.to_dict() | {"dtype": "float32"} == encoded.layout.to_dict()
    assert math.isfinite(encoded.record.relative_error)
