"""The weight of an encoded layer: described, decoded for who computes with it, and never written to."""

from pathlib import Path
from typing import Any

import pytest
import torch
from formulas import COLUMNS, ROWS, random_matrix
from small_bundles import bundle_of, logits
from torch import nn

from kquant_cli.runtime import KashinLinear, load
from kquant_cli.runtime.cannot_run import CannotRunFromCodesError


@pytest.fixture
def layer() -> KashinLinear:
    made = KashinLinear.of(random_matrix(16))
    made.name = "model.layers.3.mixer.dt_proj"
    return made


def test_it_is_described(layer: KashinLinear) -> None:
    weight = layer.weight
    assert isinstance(weight, torch.Tensor)
    assert (weight.shape, weight.dtype, weight.device.type) == ((ROWS, COLUMNS), torch.float32, "cpu")
    assert (weight.size(0), weight.dim(), weight.ndim, len(weight), weight.numel()) == (
        ROWS,
        2,
        2,
        ROWS,
        ROWS * COLUMNS,
    )
    assert weight.is_floating_point()
    assert not weight.requires_grad
    assert not weight.is_cuda
    assert repr(weight) == f"DescribedWeight(({ROWS}, {COLUMNS}), torch.float32)"
    assert weight._is_hf_initialized  # transformers leaves it alone


USES = [
    lambda w: torch.ones(1, COLUMNS) @ w.T,
    lambda w: w @ torch.ones(COLUMNS),
    lambda w: nn.functional.linear(torch.ones(1, COLUMNS), w),
    lambda w: torch.einsum("ij,kj->ik", torch.ones(1, COLUMNS), w),
    lambda w: torch.cat([w, w]),
    lambda w: w[:, :2],
    lambda w: w.float(),
    lambda w: w.detach().sum(),
    lambda w: torch.from_numpy(w.numpy()),
    lambda w: torch.linalg.vector_norm(w, dim=1),
]


@pytest.mark.parametrize("use", USES)
def test_who_computes_with_it_gets_the_decoded_one(use: Any, layer: KashinLinear) -> None:
    weight: Any = layer.weight
    assert weight.decoded is None
    assert torch.equal(use(weight), use(layer.encoded().decode()))


@pytest.mark.parametrize(
    "write", [lambda w: w.div_(2), lambda w: w.mul_(2), lambda w: w.__setitem__(0, 1.0), nn.init.ones_]
)
def test_to_write_to_it_is_an_error_that_names_the_layer(write: Any, layer: KashinLinear) -> None:
    before = layer.encoded().decode()
    with pytest.raises(
        CannotRunFromCodesError, match=r"writes to the weight of the encoded 'model\.layers\.3\.mixer\."
    ):
        write(layer.weight)
    assert torch.equal(layer.weight + 0, before)


def test_the_layers_of_a_model_know_their_names(tmp_path: Path) -> None:
    model: Any = load(bundle_of("llama", tmp_path), dtype="float32")
    logits(model)
    with pytest.raises(CannotRunFromCodesError, match=r"'model\.layers\.1\.mlp\.up_proj'.* `kquant decompress`"):
        model.model.layers[1].mlp.up_proj.weight.zero_()


class AsksForTheDtype(nn.Module):
    """As T5's feed-forward does."""

    def __init__(self, layer: KashinLinear) -> None:
        super().__init__()
        self.wo = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if isinstance(self.wo.weight, torch.Tensor) and x.dtype != self.wo.weight.dtype:
            x = x.to(self.wo.weight.dtype)
        return self.wo(x)


def test_a_model_that_asks_for_the_dtype_compiles(layer: KashinLinear) -> None:
    torch._dynamo.reset()
    x = torch.randn(2, COLUMNS, dtype=torch.float64)
    compiled = torch.compile(AsksForTheDtype(layer), backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), layer(x.float()))
    torch._dynamo.reset()


class MultipliesByTheWeight(nn.Module):
    """As TRL's losses do with an output head."""

    def __init__(self, layer: KashinLinear) -> None:
        super().__init__()
        self.head = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.head.weight.T


def test_a_compiled_model_that_multiplies_by_it_gets_no_nan(layer: KashinLinear) -> None:
    torch._dynamo.reset()
    x, model = torch.randn(2, COLUMNS), MultipliesByTheWeight(layer)
    torch.testing.assert_close(torch.compile(model, backend="eager")(x), x @ layer.encoded().decode().T)
    torch._dynamo.reset()
