"""Which weights a model computes with itself, as it runs on meta."""

from pathlib import Path
from typing import Any

import pytest
import tiny_uncommon
import torch
from torch import nn

from kquant_cli.checkpoint import open_checkpoint
from kquant_cli.hf.weight_probe import Watched, used_past_forward
from kquant_cli.hf.weight_uses import WeightUse, uses_of


def used(folder: Path) -> dict[str, str]:
    checkpoint = open_checkpoint(folder)
    names = [name for name, info in checkpoint.tensors.items() if len(info.shape) == 2 and name.endswith(".weight")]
    return used_past_forward(folder, names, uses_of(checkpoint.config))


@pytest.mark.parametrize(
    ("arch", "overrides", "expected"),
    [
        ("mamba", {}, {f"backbone.layers.{n}.mixer.dt_proj.weight": "MambaMixer" for n in (0, 1)}),
        (
            "rwkv",
            {},
            {
                f"rwkv.blocks.{n}.{name}.weight": "RwkvForCausalLM"
                for n in range(4)
                for name in ("attention.output", "feed_forward.value")
            },
        ),
        ("rwkv", {"rescale_every": 0}, {}),
        (
            "bloom",
            {"pretraining_tp": 2, "slow_but_exact": True},
            {
                f"transformer.h.{n}.{name}.weight": owner
                for n in (0, 1)
                for name, owner in {"self_attention.dense": "BloomAttention", "mlp.dense_4h_to_h": "BloomMLP"}.items()
            },
        ),
        ("bloom", {"pretraining_tp": 2}, {}),
    ],
    ids=["mamba", "rwkv", "rwkv that does not rescale", "exact bloom", "bloom"],
)
def test_what_the_forward_shows(arch: str, overrides: dict[str, Any], expected: dict[str, str], tmp_path: Path) -> None:
    assert used(tiny_uncommon.make(arch, tmp_path / arch, **overrides)) == expected


def test_what_cannot_be_run_stays_under_suspicion(tmp_path: Path) -> None:
    """DeBERTa decides by numbers, which meta has not; of its blocks the source names one projection alone."""
    found = used(tiny_uncommon.make("deberta", tmp_path / "deberta"))
    names = {name for name in found if "embeddings" not in name}
    assert names == {f"deberta.encoder.layer.{n}.attention.self.in_proj.weight" for n in (0, 1)}


def test_a_checkpoint_that_transformers_cannot_make_has_none(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "of nobody"}')
    assert used_past_forward(tmp_path, ["layers.0.dense.weight"], {WeightUse("dense", None)}) == {}


@pytest.mark.parametrize(
    "use",
    [
        lambda w: w.T,
        lambda w: w.data,
        lambda w: w[:, :2],
        lambda w: w.div_(2),
        lambda w: nn.functional.linear(torch.empty(1, 4, device="meta"), w),
        lambda w: torch.einsum("ij,kj->ik", w, w),
        lambda w: torch.cat([w, w]),
    ],
)
def test_a_weight_knows_that_it_was_computed_with(use: Any) -> None:
    weight = Watched.instead(nn.Linear(4, 4, device="meta"))
    assert (weight.shape, weight.dtype, weight.dim(), weight.is_contiguous()) == ((4, 4), torch.float32, 2, True)
    assert not weight.touched
    use(weight)
    assert weight.touched
