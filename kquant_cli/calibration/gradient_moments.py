"""The metric of every matrix (encoders/metric.py): second moments of its inputs, weighted by squared gradients.

    H = sum_t w_t x_t x_t^T,    w_t = mean_i g_ti^2,    g_t the gradient of the tokens' cross-entropy with respect to
    the matrix's output for token t

One forward pass keeps what each block was given; then the blocks are run again from the last to the first, each with
the gradient of what it gives: no more of a backward pass is in memory than one block's, and no more of the moments than
one block's. Both passes go chunk of sequences by chunk, and every other chunk belongs to the second half of the tokens.

A model must be a chain for this: blocks (modules that a number names, such as model.layers.7) that are called once
each, the hidden states of one being those of the next.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor, nn

from kquant_cli.calibration.input_modules import find_input_modules, is_linear
from kquant_cli.calibration.unavailable import StatisticsUnavailable, or_unavailable
from kquant_cli.checkpoint import Matrix
from kquant_cli.encoders.metric import Metric
from kquant_cli.errors import KQuantError
from kquant_cli.hf.blocks import autocast, numbered_blocks, replaced, without_logits

LOGITS: Final = {"cpu": 1 << 27, "cuda": 1 << 29}  # of a chunk
FEWEST: Final = 128  # tokens that must have reached a matrix: an H of fewer says little


@dataclass
class _Sums:
    """What is summed of one matrix: H of either half, squared gradients of its outputs, and the tokens seen."""

    halves: list[Tensor]
    outputs: Tensor
    rows: int = 0

    @classmethod
    def zeros(cls, rows: int, columns: int, device: torch.device) -> _Sums:
        """Nothing seen yet of a matrix (rows, columns)."""
        halves = [torch.zeros(columns, columns, device=device) for _ in range(2)]
        return cls(halves, torch.zeros(rows, device=device))

    def add(self, x: Tensor, gradient: Tensor, half: int) -> None:
        """x (tokens, in_features), gradient (tokens, out_features)."""
        sizes = torch.linalg.vector_norm(gradient, dim=1, keepdim=True, dtype=torch.float32)
        weighted = x * (sizes / math.sqrt(gradient.shape[1]))
        self.halves[half].addmm_(weighted.T, weighted)
        self.outputs += gradient.float().square().sum(dim=0)
        self.rows += len(x)


@dataclass
class GradientMoments:
    """The passes of `model`, in evaluation mode and without gradients of its parameters, over token ids."""

    model: Any
    ids: Tensor  # (sequences, length)
    device: torch.device
    _blocks: list[tuple[str, nn.Module]] = field(default_factory=list, init=False)
    _chunks: list[_Chunk] = field(default_factory=list, init=False)

    def forward(self, progress: Callable[[int, int], None] = lambda done, total: None) -> float:
        """Keep what each block is given, and the gradient of what the last gives; the mean cross-entropy in nats.

        Raises
        ------
        StatisticsUnavailable
            The model is no chain of blocks, or transformers cannot run it.
        KQuantError
            Its cross-entropy is not finite.
        """
        width = self.model.get_input_embeddings().weight.shape[0]
        size = max(
            1, min(LOGITS.get(self.device.type, LOGITS["cpu"]) // (width * self.ids.shape[1]), -(-len(self.ids) // 2))
        )
        chunks, total = self.ids.split(size), 0.0
        with or_unavailable(_name(self.model)):
            for number, ids in enumerate(chunks):
                chunk = self._forward(ids.to(self.device))
                total += self._head(chunk)
                self._chunks.append(chunk)
                progress(number + 1, len(chunks))
        mean = total / (self.ids.numel() - len(self.ids))
        if not mean < float("inf"):
            raise KQuantError(
                f"{_name(self.model)} computes a cross-entropy that is not finite on its calibration tokens: mend the "
                f"checkpoint, or give --calibration random or none"
            )
        return mean

    def backward(
        self, matrices: Sequence[Matrix], tied: Mapping[str, str]
    ) -> Iterator[tuple[dict[str, Metric], dict[str, str]]]:
        """Block after block, from the last to the first: metrics by matrix's name, and why others of it have none.

        Matrices outside the blocks, and those that are not the weight of a linear layer, are in none: of an expert that
        is part of a larger tensor no hook sees the output. Metrics are on the device.
        """
        found = find_input_modules(self.model, matrices, tied)
        shapes = {matrix.name: matrix.shape for matrix in matrices}
        gradients = [chunk.gradient for chunk in self._chunks]
        for place, (_, block) in reversed(list(enumerate(self._blocks))):
            inside = set(block.modules())
            users: dict[nn.Module, list[_Sums]] = {}
            sums: dict[str, _Sums] = {}
            for name, inputs in found.items():
                if inputs.modules and inside.issuperset(inputs.modules) and all(map(is_linear, inputs.modules)):
                    sums[name] = _Sums.zeros(*shapes[name], self.device)
                    for module in inputs.modules:
                        users.setdefault(module, []).append(sums[name])
            for number, chunk in enumerate(self._chunks):
                gradients[number] = chunk.back_through(place, block, gradients[number], users, number % 2)
            reasons = {name: reason for name, one in sums.items() if (reason := _unfit(one))}
            good = {name: one for name, one in sums.items() if name not in reasons}
            yield {n: Metric(one.halves[0], one.halves[1], one.outputs) for n, one in good.items()}, reasons

    def release(self) -> None:
        """Let go of all that the forward pass kept."""
        self._blocks, self._chunks = [], []

    def _forward(self, ids: Tensor) -> _Chunk:
        """The model's own forward pass over ids, each block's call kept."""
        calls: dict[str, _Call] = {}
        blocks = numbered_blocks(self.model)

        def keep(name: str) -> Callable[..., None]:
            def hook(_module: Any, args: Any, kwargs: Any, output: Any) -> None:
                if name in calls:
                    raise StatisticsUnavailable(f"{_name(self.model)} calls {name} more than once")
                calls[name] = _Call.of(args, kwargs, output)

            return hook

        handles = [module.register_forward_hook(keep(name), with_kwargs=True) for name, module in blocks]
        try:
            with torch.no_grad(), autocast(self.device):
                self.model(input_ids=ids, **without_logits(self.model))
        finally:
            for handle in handles:
                handle.remove()
        modules = dict(blocks)
        order = [(name, modules[name]) for name in calls]
        if not order or (self._blocks and [n for n, _ in self._blocks] != list(calls)):
            raise StatisticsUnavailable(f"{_name(self.model)} has no fixed order of numbered blocks")
        self._blocks = order
        listed = list(calls.values())
        for (name, _), before, after in zip(order[1:], listed, listed[1:], strict=False):
            if before.output is None or before.output is not after.hidden:
                raise StatisticsUnavailable(
                    f"{_name(self.model)} changes hidden states before {name}: no chain of blocks"
                )
        last = listed[-1].output
        assert last is not None
        return _Chunk(ids, listed, last)

    def _head(self, chunk: _Chunk) -> float:
        """The sum of the cross-entropy of a chunk; its gradient goes where the last block's output is."""
        assert chunk.output is not None
        hidden = chunk.output.detach().clone().requires_grad_()
        blocks, packed = [module for _, module in self._blocks], chunk.calls[-1].packed
        with replaced(blocks, hidden, packed=packed), torch.enable_grad(), autocast(self.device):
            logits = self.model(input_ids=chunk.ids, use_cache=False).logits
            loss = nn.functional.cross_entropy(
                logits[:, :-1].flatten(0, 1).float(), chunk.ids[:, 1:].flatten(), reduction="sum"
            )
        loss.backward()
        assert hidden.grad is not None
        chunk.gradient, chunk.output = hidden.grad, None
        for call in chunk.calls:
            call.output = None
        return float(loss.detach())


@dataclass
class _Call:
    """A block's call: the hidden states, the other arguments, and the output until it is used."""

    hidden: Tensor
    others: tuple[Any, ...]
    named: Mapping[str, Any]
    in_place: str | None  # the name of the argument that has the hidden states; None: the first
    output: Tensor | None
    packed: bool  # whether the output is the first of several

    @classmethod
    def of(cls, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> _Call:
        packed = isinstance(output, tuple)
        first = output[0] if packed else output
        hidden = first if isinstance(first, Tensor) else None
        if args and isinstance(args[0], Tensor):
            return cls(args[0], args[1:], kwargs, None, hidden, packed)
        named = next(
            (name for name, value in kwargs.items() if isinstance(value, Tensor) and value.is_floating_point()), None
        )
        if named is None:
            raise StatisticsUnavailable("the blocks take no hidden states")
        rest = {name: value for name, value in kwargs.items() if name != named}
        return cls(kwargs[named], args, rest, named, hidden, packed)

    def run(self, block: nn.Module, hidden: Tensor) -> Tensor:
        """The hidden states that `block` makes of others."""
        if self.in_place is None:
            output = block(hidden, *self.others, **self.named)
        else:
            output = block(*self.others, **{**self.named, self.in_place: hidden})
        made: Tensor = output[0] if isinstance(output, tuple) else output
        return made


@dataclass
class _Chunk:
    """Some sequences: their ids, the calls of the blocks not yet gone back through, and the gradient after the last."""

    ids: Tensor
    calls: list[_Call]
    output: Tensor | None
    gradient: Tensor | None = None

    def back_through(
        self,
        place: int,
        block: nn.Module,
        gradient: Tensor | None,
        users: Mapping[nn.Module, Sequence[_Sums]],
        half: int,
    ) -> Tensor | None:
        """Run the block of that place again; from the gradient after it, that before it, and the sums of `users`."""
        call = self.calls[place]
        hidden = call.hidden.detach().clone().requires_grad_()

        def watch(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Tensor) -> None:
            x = next(v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)).detach()

            def take(of_output: Tensor) -> None:
                rows = of_output.detach().reshape(-1, of_output.shape[-1])
                for sums in users[module]:
                    sums.add(x.reshape(-1, x.shape[-1]), rows, half)

            if output.requires_grad and output.numel():
                output.register_hook(take)

        handles = [module.register_forward_hook(watch, with_kwargs=True) for module in users]
        try:
            with torch.enable_grad(), autocast(hidden.device):
                made = call.run(block, hidden)
            made.backward(None if gradient is None else gradient.to(made.dtype))
        finally:
            for handle in handles:
                handle.remove()
        return hidden.grad


def _unfit(sums: _Sums) -> str:
    """Why these sums say nothing of a matrix; empty if they do."""
    if sums.rows < FEWEST:
        return f"fewer than {FEWEST} tokens were seen to reach them"
    if not all(bool(torch.isfinite(tensor).all()) for tensor in (*sums.halves, sums.outputs)):
        return "their inputs or gradients were not finite"
    if not float(sums.outputs.max()) > 0 or not all(float(half.diagonal().max()) > 0 for half in sums.halves):
        return "no gradient or no input reached them"
    return ""


def _name(model: Any) -> str:
    return str(getattr(model.config, "name_or_path", "") or type(model).__name__)
