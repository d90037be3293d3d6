"""Passes begun at a block give what whole passes give, and compute nothing before it."""

from collections.abc import Callable
from typing import Any

import pytest
import tiny_models
import torch

from kquant_cli.calibration.replay import Replay
from kquant_cli.hf.block_names import block_of

LAYERS = 4


def replay_of(arch: str, **overrides: Any) -> tuple[torch.nn.Module, Replay]:
    model = tiny_models.build(arch, num_hidden_layers=LAYERS, use_cache=False, **overrides)
    return model, Replay(model, {"input_ids": tiny_models.tokens()})


def count_calls(model: torch.nn.Module, of: Callable[[str], bool]) -> list[str]:
    """The names of the modules called from now on, of those whose name `of` wants."""
    called: list[str] = []
    for name, module in model.named_modules():
        if of(name):
            module.register_forward_pre_hook(lambda _module, _inputs, name=name: called.append(name))
    return called


def test_blocks_are_named_up_to_the_first_number() -> None:
    assert block_of("model.layers.3.mlp.experts.7.w1.weight") == "model.layers.3"
    assert block_of("transformer.h.0") == "transformer.h.0"
    assert block_of("lm_head.weight") is None


@pytest.mark.parametrize("arch", ["opt", "llama", "gpt2", "gpt_neox", "mixtral", "bert", "bert_classifier"])
def test_a_pass_from_a_block_is_the_whole_pass_without_what_comes_before(arch: str) -> None:
    model, replay = replay_of(arch)
    blocks = [name for name, _ in model.named_modules() if name and block_of(name) == name]
    assert len(blocks) == LAYERS
    within = count_calls(model, lambda name: (block_of(name) or name) != name)
    for number, block in enumerate(blocks):
        with torch.no_grad():
            weight = next(p for p in model.get_submodule(block).parameters() if p.ndim > 1)
            own = weight.clone()
            weight += 0.1
            within.clear()
            found = replay.run([block]).logits
            assert {block_of(name) for name in within} == set(blocks[number:])
            whole = model(input_ids=tiny_models.tokens()).logits
            assert torch.equal(found, whole)
            weight.copy_(own)
    assert torch.equal(replay.run([blocks[2], blocks[1]]).logits, replay.output.logits)


def test_outside_of_blocks_the_whole_pass_is_computed() -> None:
    model, replay = replay_of("llama")
    within = count_calls(model, lambda name: name.endswith("mlp"))
    for blocks in ([None], ["model.layers.3", None], ["model.layers.9"]):
        within.clear()
        replay.run(blocks)
        assert len(within) == LAYERS


def test_the_model_is_as_it_was() -> None:
    model, replay = replay_of("llama")
    mended = model.model.layers[1]
    mended.forward = special = mended.forward
    replay.run(["model.layers.3"])
    assert "forward" not in vars(model.model.layers[0])
    assert mended.forward is special
    assert not any(module._forward_hooks for module in model.modules())


class Twice(torch.nn.Module):
    """The first of two blocks is called twice, as where layers share their weights."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(3, 3) for _ in range(2))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        first, second = self.layers
        return {"logits": second(first(first(x)))}


def test_blocks_called_twice_are_not_replayed() -> None:
    model = Twice()
    replay = Replay(model, {"x": torch.ones(3)})
    with torch.no_grad():
        model.layers[1].weight += 1
        model.layers[0].weight += 1
    assert torch.equal(replay.run(["layers.1"])["logits"], model(torch.ones(3))["logits"])


class Sharing(torch.nn.Module):
    """The second block reads what the first leaves beside its output, as models do that share keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(_Leaves() for _ in range(2))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        shared: list[torch.Tensor] = []
        x = self.layers[0](x, shared)
        return {"logits": self.layers[1](x, shared) + shared[1]}


class _Leaves(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.nn.Linear(3, 3)

    def forward(self, x: torch.Tensor, shared: list[torch.Tensor]) -> torch.Tensor:
        shared.append(self.inner(x))
        return shared[-1] * 2


def test_blocks_that_hand_on_more_than_their_output_are_not_replayed() -> None:
    model = Sharing()
    replay = Replay(model, {"x": torch.ones(3)})
    with torch.no_grad():
        model.layers[1].inner.weight += 1
    assert torch.equal(replay.run(["layers.1"])["logits"], model(torch.ones(3))["logits"])
