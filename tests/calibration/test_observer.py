"""Which inputs count as one: the same numbers in the same storage, never an address used twice."""

from __future__ import annotations

import torch
from torch import nn

from kquant_cli.calibration.observer import Observer


def observe(*inputs: torch.Tensor) -> tuple[Observer, list[tuple[int, ...]]]:
    layers = [nn.Identity() for _ in inputs]
    observer = Observer()
    with observer.watching(layers, lambda: None), torch.no_grad():
        for layer, tensor in zip(layers, inputs, strict=True):
            layer(tensor)
    return observer, [tuple(observer.reached[layer]) for layer in layers]


def test_views_of_the_same_tokens_are_one_input():
    inputs = torch.randn(2, 3, 4)
    observer, numbers = observe(inputs, inputs, inputs.view(-1, 4), inputs.clone(), inputs[:, :1], inputs.view(-1, 2))
    assert numbers == [(0,), (0,), (0,), (1,), (2,), (3,)]
    expected = inputs.double().flatten(0, 1).square().sum(0)
    assert torch.equal(observer.moments[0].sums, expected) and observer.moments[0].rows == 6


def test_inputs_are_left_as_they_are():
    inputs = torch.randn(3, 4, dtype=torch.float64)
    before = inputs.clone()
    observe(inputs)
    assert torch.equal(inputs, before)


def test_a_change_in_place_makes_another_input():
    layers = [nn.Identity(), nn.Identity()]
    observer, inputs = Observer(), torch.ones(5, 4)
    with observer.watching(layers, lambda: None), torch.no_grad():
        layers[0](inputs)
        inputs.mul_(2)
        layers[1](inputs)
    assert [observer.reached[layer] for layer in layers] == [[0], [1]]
    assert torch.equal(observer.moments[1].sums, torch.full((4,), 20.0, dtype=torch.float64))


def test_memory_used_again_is_not_taken_for_what_was_there_before():
    layer, observer, addresses = nn.Identity(), Observer(), []
    with observer.watching([layer], lambda: None):
        for value in range(20):
            inputs = torch.full((64, 64), float(value))
            addresses.append(inputs.data_ptr())
            layer(inputs)
            del inputs
    assert len(set(addresses)) < 20, "the test needs an address that is used again"
    assert observer.reached[layer] == list(range(20))
    assert [moments.sums[0].item() for moments in observer.moments] == [64.0 * value**2 for value in range(20)]


def test_nothing_of_the_inputs_is_kept():
    import weakref

    layer, observer = nn.Identity(), Observer()
    with observer.watching([layer], lambda: None):
        inputs = torch.ones(1000, 4)
        layer(inputs)
        alive = weakref.ref(inputs)
        del inputs
    assert alive() is None and len(observer.moments) == 1


def test_sums_are_in_float64_and_hooks_are_gone_afterwards():
    inputs = torch.full((1 << 12, 2), 1e30)
    observer, _ = observe(inputs)
    assert torch.equal(observer.moments[0].sums, torch.full((2,), float(inputs[0, 0]) ** 2, dtype=torch.float64) * 4096)
    layer = nn.Identity()
    with Observer().watching([layer], lambda: None):
        pass
    assert not layer._forward_pre_hooks


def test_the_first_floating_point_argument_counts_by_position_or_name():
    class Experts(nn.Module):
        def forward(self, index: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
            return hidden

    layer, observer = Experts(), Observer()
    with observer.watching([layer], lambda: None):
        layer(torch.tensor([1]), hidden=torch.ones(3, 4))
        layer(torch.tensor([1]), torch.empty(0, 4))
    assert [moments.rows for moments in observer.moments] == [3]
