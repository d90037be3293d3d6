"""Forward passes that begin in the middle: blocks before a given one give what they gave in the first pass.

A block is a module that a number names, such as model.layers.7. A change in one leaves the blocks called before it as
they were, so their outputs need not be computed again: on average half of the work. Whether a model allows it (its
blocks are called once each, and hand nothing on but their outputs) is tried, and otherwise passes are whole.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._pytree import tree_map_only

from kquant_cli.errors import is_shortage
from kquant_cli.hf.blocks import numbered_blocks
from kquant_cli.hf.failures import FAILURES


class Replay:
    """A model with fixed inputs. `output` is that of the first pass; the weights must be its own again by the next."""

    def __init__(self, model: torch.nn.Module, inputs: Mapping[str, torch.Tensor]) -> None:
        self._model, self._inputs = model, inputs
        self._blocks = dict(numbered_blocks(model))
        self._outputs: dict[str, Any] = {}
        self._once = True
        handles = [
            block.register_forward_hook(lambda _module, _inputs, output, name=name: self._record(name, output))
            for name, block in self._blocks.items()
        ]
        try:
            self.output = self._call()
        finally:
            for handle in handles:
                handle.remove()
        if not self._works():
            self._outputs = {}

    def run(self, blocks: Collection[str | None]) -> Any:
        """The output, computed anew from the first of `blocks` on; all of it when one is None or was never called."""
        order = list(self._outputs)
        begin = min((order.index(name) if name in order else 0 for name in blocks), default=0)
        with self._replaced(order[:begin]):
            return self._call()

    def _call(self) -> Any:
        with torch.no_grad():
            return self._model(**self._inputs)

    def _record(self, name: str, output: Any) -> None:
        self._once = self._once and name not in self._outputs
        self._outputs[name] = _copy(output)

    @contextmanager
    def _replaced(self, names: list[str]) -> Iterator[None]:
        """Within it, the blocks of these names return what they did in the first pass."""
        modules = {name: self._blocks[name] for name in names}
        own = {name: vars(module)["forward"] for name, module in modules.items() if "forward" in vars(module)}
        try:
            for name, module in modules.items():
                module.forward = lambda *_args, name=name, **_kwargs: _copy(self._outputs[name])
            yield
        finally:
            for name, module in modules.items():
                del module.forward
                if name in own:
                    module.forward = own[name]

    def _works(self) -> bool:
        """Whether beginning in the middle, and at the last block, gives the first pass's output."""
        order = list(self._outputs)
        if not self._once or len(order) < 2:
            return False
        try:
            again = [self.run([name]) for name in (order[len(order) // 2], order[-1])]
        except FAILURES as error:
            if is_shortage(error):
                raise
            return False
        return all(_same(self.output, output) for output in again)


def _copy(output: Any) -> Any:
    """The same structure with tensors of its own, which nothing that comes later can change."""
    return tree_map_only(torch.Tensor, torch.clone, output)


def _same(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Whether the tensors of two outputs are the same but for rounding, which differs on a GPU from pass to pass."""
    return first.keys() == second.keys() and all(
        torch.allclose(value, second[name], rtol=1e-4, atol=1e-4 * float(value.abs().max()))
        for name, value in first.items()
        if isinstance(value, torch.Tensor)
    )
