"""What the source of transformers' models says of weights, read without importing it."""

import subprocess
import sys
from pathlib import Path

import pytest

from kquant_cli.hf import weight_uses
from kquant_cli.hf.weight_uses import WeightUse, uses_of

SOURCE = """
from ..other.modeling_other import Other

class Mixer:
    def __init__(self):
        self.a.weight.fill_(0)
        self.b = self.tied.weight

    def _init_weights(self, module):
        module.c.weight.normal_()

    def forward(self, x):
        x = x.to(self.d.weight.dtype) * self.weight
        if isinstance(self.e.weight, Tensor) and self.e.weight.shape[0] > 1:
            x = x + self.f.weight[:, 1:]
        if self.training and self.cache is None:
            return fused(x, self.g.weight)
        elif self.training or self.fused:
            x = self.h.weight @ x
        if not self.training:
            self.i.weight.data.div_(2)
        return x

def rescale(model):
    for block in model.blocks:
        block.attention.output.weight.div_(2)
"""


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in (
        ("mixer", SOURCE),
        ("other", "class Other:\n    def forward(self, x): return self.k.weight.T\n"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"modeling_{name}.py").write_text(text)
    monkeypatch.setattr(weight_uses, "_folder", lambda kind: tmp_path / kind)
    return tmp_path


def test_what_a_forward_does_with_weights_and_nothing_else(source: Path) -> None:
    own = {WeightUse(name, "Mixer") for name in "fhi"}
    expected = own | {WeightUse("output", None), WeightUse("k", "Other")}
    assert uses_of({"model_type": "mixer"}) == expected
    assert uses_of({"text_config": {"model_type": "other"}}) == {WeightUse("k", "Other")}
    assert uses_of({}) == uses_of({"model_type": 3}) == frozenset()


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"model_type": "mamba"}, {("dt_proj", "MambaMixer")}),
        ({"model_type": "rwkv"}, {("output", None), ("value", None)}),
        ({"model_type": "bloom"}, {("dense", "BloomAttention"), ("dense_4h_to_h", "BloomMLP")}),
        ({"model_type": "llama"}, set()),
        ({"model_type": "gemma3_text"}, set()),
        ({"model_type": "t5"}, set()),
        ({"model_type": "../llama"}, set()),
        ({"model_type": "of nobody"}, set()),
    ],
    ids=lambda value: value["model_type"] if isinstance(value, dict) else "",
)
def test_of_models_that_transformers_has(config: dict[str, str], expected: set[tuple[str, str | None]]) -> None:
    found = {(use.name, use.owner) for use in uses_of(config)}
    assert {use for use in found if use[0] != "conv1d" and "embed" not in use[0]} == expected


def test_parts_and_types_under_another_name_are_found() -> None:
    assert [weight_uses._folder(kind).name for kind in ("gemma3_text", "openai-gpt")] == ["gemma3", "openai"]  # type: ignore[union-attr]


def test_transformers_is_not_imported() -> None:
    code = (
        "import sys; from kquant_cli.hf.weight_uses import uses_of; assert uses_of({'model_type': 'mamba'}); "
        "print('transformers' in sys.modules, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
