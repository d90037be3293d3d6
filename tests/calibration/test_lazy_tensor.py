"""Stored tensors: what is remembered gives what would have been in memory, and is read only to compute with it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kquant_cli.calibration.lazy_parameters import load_on_demand
from kquant_cli.calibration.lazy_tensor import LazyTensor


class Disk:
    """Counts how often each tensor is read."""

    def __init__(self, **tensors: torch.Tensor) -> None:
        self.tensors, self.reads = tensors, dict.fromkeys(tensors, 0)

    def stored(self, name: str) -> LazyTensor:
        def read() -> torch.Tensor:
            self.reads[name] += 1
            return self.tensors[name].clone()

        tensor = self.tensors[name]
        return LazyTensor.on_disk(tuple(tensor.shape), tensor.dtype, read)


@pytest.fixture
def disk() -> Disk:
    generator = torch.Generator().manual_seed(0)
    return Disk(a=torch.randn(4, 6, generator=generator).half(), b=torch.randn(4, 6, generator=generator).half())


def test_operations_among_stored_tensors_read_nothing(disk: Disk):
    a, b = disk.stored("a"), disk.stored("b")
    fused = torch.cat([torch.stack([a.float(), b.float()]), torch.stack([b.float(), a.float()])], dim=1)
    first, second = fused.transpose(1, 2).chunk(2, dim=2)
    assert disk.reads == {"a": 0, "b": 0}
    assert isinstance(second, LazyTensor) and not second.is_copy
    assert second.shape == (2, 6, 4) and second.dtype == torch.float32
    expected = torch.stack([disk.tensors["b"], disk.tensors["a"]]).float().transpose(1, 2)
    assert torch.equal(second.read(), expected)
    assert torch.equal(first + torch.zeros(1), torch.stack([disk.tensors["a"], disk.tensors["b"]]).float().mT)


def test_a_copy_is_still_its_source(disk: Disk):
    copy = nn.Parameter(disk.stored("a")[...].to(torch.float32), requires_grad=False).detach()
    assert isinstance(copy, LazyTensor) and copy.is_copy
    assert not copy.t().is_copy and not copy[:2].is_copy and not (copy * 2).is_copy


def test_of_a_table_rows_are_cast_after_they_are_looked_up(disk: Disk):
    table = disk.stored("a").to(torch.float32).detach()
    assert table.before_cast is not None and table.before_cast.dtype == torch.float16
    rows = nn.functional.embedding(torch.tensor([[3, 0]]), table)
    assert type(rows) is torch.Tensor and rows.dtype == torch.float32
    assert torch.equal(rows, disk.tensors["a"][torch.tensor([[3, 0]])].float())


def test_a_weight_cannot_be_changed_in_place(disk: Disk):
    with pytest.raises(RuntimeError, match="in place"):
        disk.stored("a").zero_()
    with pytest.raises(RuntimeError, match="in place"):
        disk.stored("a").add_(torch.ones(4, 6).half())


def test_a_module_has_its_parameters_while_it_runs_and_no_longer(disk: Disk):
    layer = nn.Linear(6, 4, bias=False)
    layer.weight = nn.Parameter(disk.stored("a").float(), requires_grad=False)
    load_on_demand(layer, torch.device("cpu"))
    kinds: list[type] = []
    layer.register_forward_pre_hook(lambda module, _: kinds.append(type(module.weight)))
    inputs = torch.ones(2, 6)
    assert torch.equal(layer(inputs), inputs @ disk.tensors["a"].float().T)
    assert kinds == [nn.Parameter] and isinstance(layer.weight, LazyTensor) and disk.reads["a"] == 1
    with pytest.raises(RuntimeError):
        layer(torch.ones(2, 5))
    assert isinstance(layer.weight, LazyTensor), "an error must not leave the weight in memory"


def test_a_weight_used_outside_its_module_is_read_for_that(disk: Disk):
    layer = nn.Linear(6, 4, bias=False)
    layer.weight = nn.Parameter(disk.stored("a").float(), requires_grad=False)
    load_on_demand(layer, torch.device("cpu"))
    inputs = torch.ones(2, 6)
    assert torch.equal(inputs @ layer.weight.T, inputs @ disk.tensors["a"].float().T)


def test_a_tied_parameter_stays_one(disk: Disk):
    first, second = nn.Linear(6, 4, bias=False), nn.Linear(6, 4, bias=False)
    first.weight = second.weight = nn.Parameter(disk.stored("a").float(), requires_grad=False)
    load_on_demand(nn.ModuleList([first, second]), torch.device("cpu"))
    inputs = torch.ones(2, 6)
    assert torch.equal(first(inputs), second(inputs))
    assert first.weight is second.weight and isinstance(first.weight, LazyTensor)
