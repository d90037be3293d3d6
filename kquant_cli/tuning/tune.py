"""Tuning end to end: scales, norms and biases by Adam, so that the student's distributions are the dense model's.

The text is the calibration's. A share of its sequences is held out; what is tuned is kept only where it is better on
them. The rate warms up and falls as a cosine over all steps; how many these are is given, or follows from the minutes
and the time of the first ones. What Adam knows is saved now and then, so that a run that goes on does so from there.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from kquant_cli.files.tensor_sums import tensor_sum
from kquant_cli.hf.blocks import numbered_blocks, replaced, without_logits
from kquant_cli.tuning.budget import Budget
from kquant_cli.tuning.distillation import divergence
from kquant_cli.tuning.mixed_precision import computed_dtype, in_dtype
from kquant_cli.tuning.saved_state import load_state, save_state
from kquant_cli.tuning.student import TunedLinear

TOKENS: Final = 1024  # of a step
MICRO: Final = {"cpu": 2048, "cuda": 8192}  # of them go through the model at a time
LOGITS: Final = {"cpu": 1 << 27, "cuda": 1 << 29}  # and no more of these
WARM_UP, UNTIMED, TIMED = 10, 1, 3  # steps: of a rising rate; before and while they are timed
HELD_OUT: Final = 16  # one sequence of so many
BETAS: Final = (0.9, 0.95)
SAVED_EVERY: Final = 60.0  # seconds


@dataclass(frozen=True)
class Tuned:
    """What came of it. `divergence`: the mean KL in nats a token on held-out text, before and after.

    `scales`: row scale (rows, 1) and column scale (columns,) by the matrix's name; `vectors`: other parameters by
    tensor's name. Both are empty where tuning did not help.
    """

    scales: Mapping[str, tuple[Tensor, Tensor]]
    vectors: Mapping[str, Tensor]
    steps: int
    divergence: tuple[float, float]
    tokens: int = 0  # of all steps
    notes: tuple[str, ...] = ()

    def tensors(self) -> dict[str, Tensor]:
        """What was tuned, by the name of its tensor in a bundle."""
        both = {
            f"{name}.{suffix}": tensor
            for name, pair in self.scales.items()
            for suffix, tensor in zip(("weight_scale", "weight_col_scale"), pair, strict=True)
        }
        return {**both, **self.vectors}

    def to_dict(self) -> dict[str, Any]:
        """What the manifest says of it."""
        before, after = (value if math.isfinite(value) else None for value in self.divergence)
        return {
            "steps": self.steps,
            "tokens": self.tokens,
            "tuned": len(self.scales),
            "held_out_divergence": {"before": before, "after": after},
        }


class Tuning:
    """The tuning of `model`, float32 and dense, on `device`, in which the student's layers are put after this.

    `vectors`: the model's parameters beside the scales, with the dtype that they are stored in, by their tensor's name.
    """

    def __init__(
        self, model: Any, vectors: Mapping[str, tuple[nn.Parameter, torch.dtype]], ids: Tensor, device: torch.device
    ) -> None:
        self.device, self.ids, self._batch = device, ids, max(1, TOKENS // ids.shape[1])
        self.dtypes = {name: dtype for name, (_, dtype) in vectors.items()}
        self._blocks = [block for _, block in numbered_blocks(model)]
        self.model, self.vectors = in_dtype(model, {n: p for n, (p, _) in vectors.items()}, computed_dtype(device))
        self._originals = {name: parameter.detach().clone() for name, parameter in self._outside()}
        self._packed = False  # whether a block gives more than hidden states
        self._hidden = self._last_hidden()

    def run(
        self,
        layers: Mapping[str, TunedLinear],
        budget: Budget,
        *,
        rate: float,
        seed: int,
        state: Path | None = None,
        progress: Callable[[int, int], None] = lambda done, total: None,
        say: Callable[[str], None] = lambda sentence: None,
    ) -> Tuned:
        """Tune the model, whose `layers` are now the student's; `state` is a file of the run's own."""
        held_out = list(range(0, len(self.ids), HELD_OUT)) if len(self.ids) > 1 else [0]
        trained = [n for n in range(len(self.ids)) if n not in set(held_out)] or held_out
        before = self._mean(held_out)
        changes = [p for layer in layers.values() for p in (layer.scale_change, layer.col_scale_change)]
        parameters = [*changes, *self.vectors.values()]
        for parameter in parameters:
            parameter.requires_grad_(True)
        first = [parameter.detach().clone() for parameter in parameters]
        try:
            steps, notes = self._descend(parameters, trained, budget, rate, seed, state, progress, say)
        finally:
            for parameter in parameters:
                parameter.requires_grad_(False)
                parameter.grad = None
        self._round(layers)
        tokens = steps * self._batch * self.ids.shape[1]
        after = self._mean(held_out)
        if not after < before:
            for parameter, value in zip(parameters, first, strict=True):
                parameter.data.copy_(value)
            said = (
                f"tuning did not help on held-out text ({before:.4f} to {after:.4f} nats a token), so it was left out"
            )
            return Tuned({}, {}, steps, (before, after), tokens, (*notes, said))
        scales = {
            name: (layer.scale.detach().half().cpu().unsqueeze(1), layer.col_scale.detach().half().cpu())
            for name, layer in layers.items()
        }
        return Tuned(
            scales, {n: p.detach().cpu() for n, p in self.vectors.items()}, steps, (before, after), tokens, notes
        )

    def _descend(
        self,
        parameters: Sequence[nn.Parameter],
        trained: Sequence[int],
        budget: Budget,
        rate: float,
        seed: int,
        state: Path | None,
        progress: Callable[[int, int], None],
        say: Callable[[str], None],
    ) -> tuple[int, tuple[str, ...]]:
        """Adam's steps: how many, and what the user should know."""
        optimizer = torch.optim.Adam(parameters, lr=rate, betas=BETAS)
        total, step, key = budget.steps, 0, self._key(parameters, budget, rate, seed)
        if state is not None and state.exists():
            if (saved := load_state(state, optimizer, parameters, key)) is not None:
                step, total = saved
            else:
                say(f"what was saved of the tuning in {state} is damaged, or of another run: the tuning begins anew")
        order = _shuffled(trained, seed)
        began = saved_at = time.monotonic()
        while total is None or step < total:
            wanted = total or budget.most
            if step == UNTIMED:
                began = time.monotonic()
            if total is None and step == UNTIMED + TIMED:
                each = (time.monotonic() - began) / TIMED
                total = wanted = max(step + 1, min(budget.most, int(60 * budget.minutes / max(each, 1e-9))))
            share = min(1.0, (step + 1) / WARM_UP) * (0.5 + 0.5 * math.cos(math.pi * step / wanted))
            for group in optimizer.param_groups:
                group["lr"] = rate * share
            loss = self._gradient(order(step, self._batch))
            if not math.isfinite(loss):
                return step, (f"tuning ended at step {step + 1}, whose loss was not finite",)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            progress(step, wanted)
            if state is not None and total is not None and time.monotonic() - saved_at > SAVED_EVERY:
                save_state(state, optimizer, parameters, step, total, key)
                saved_at = time.monotonic()
        return step, ()

    def _key(self, parameters: Sequence[nn.Parameter], budget: Budget, rate: float, seed: int) -> str:
        """What a tuning depends on, as text: its text, its settings, and where it begins."""
        begin = [tensor_sum(parameter.detach()) for parameter in parameters]
        return str([tensor_sum(self.ids), TOKENS, asdict(budget), rate, seed, begin])

    def _gradient(self, numbers: Sequence[int]) -> float:
        """The mean loss of these sequences; its gradient goes to the parameters."""
        total, tokens = 0.0, len(numbers) * self.ids.shape[1]
        for part in self._parts(numbers):
            loss = self._divergence(part) / tokens
            loss.backward()
            total += float(loss.detach())
        return total

    @torch.no_grad()
    def _mean(self, numbers: Sequence[int]) -> float:
        """The mean KL a token of these sequences."""
        parts = self._parts(numbers)
        return sum(float(self._divergence(part)) for part in parts) / (len(numbers) * self.ids.shape[1])

    def _divergence(self, numbers: Tensor) -> Tensor:
        ids = self.ids[numbers].to(self.device)
        hidden = self._hidden[numbers].to(self.device)
        arguments = {"input_ids": ids, "use_cache": False}
        with torch.no_grad(), replaced(self._blocks, hidden, packed=self._packed):
            teacher = torch.func.functional_call(self.model, self._originals, kwargs=arguments).logits
        return divergence(self.model(**arguments).logits, teacher)

    def _outside(self) -> list[tuple[str, nn.Parameter]]:
        """The vectors outside the blocks, by their names in the model: those that the dense model's head reads."""
        own = {id(parameter) for parameter in self.vectors.values()}
        own -= {id(parameter) for block in self._blocks for parameter in block.parameters()}
        return [(name, parameter) for name, parameter in self.model.named_parameters() if id(parameter) in own]

    def _parts(self, numbers: Sequence[int]) -> list[Tensor]:
        """These sequences, as many at a time as go through the model."""
        length, kind = self.ids.shape[1], self.device.type if self.device.type in MICRO else "cpu"
        width = self.model.get_input_embeddings().weight.shape[0]
        size = max(1, min(MICRO[kind] // length, LOGITS[kind] // (length * width)))
        return list(torch.tensor(numbers).split(size))

    @torch.no_grad()
    def _last_hidden(self) -> Tensor:
        """What the dense model's last block gives for all sequences (sequences, length, hidden), on the CPU."""
        found: list[Tensor] = []
        last: Any = None  # of the blocks that are called, which need not be the last that the model has

        def keep(_module: Any, _args: Any, output: Any) -> None:
            nonlocal last
            last = output

        handles = [block.register_forward_hook(keep) for block in self._blocks]
        try:
            for part in self._parts(range(len(self.ids))):
                self.model(input_ids=self.ids[part].to(self.device), **without_logits(self.model))
                self._packed = isinstance(last, tuple)
                found.append((last[0] if self._packed else last).cpu())
        finally:
            for handle in handles:
                handle.remove()
        return torch.cat(found)

    @torch.no_grad()
    def _round(self, layers: Mapping[str, TunedLinear]) -> None:
        """Bring what was tuned to what will be stored of it."""
        for layer in layers.values():
            for before, change in (
                (layer.scale_before, layer.scale_change),
                (layer.col_scale_before, layer.col_scale_change),
            ):
                stored = (before * change).half().float()
                change.copy_(torch.where(before != 0, stored / before, 1))
        for name, parameter in self.vectors.items():
            parameter.copy_(parameter.to(self.dtypes[name]))


def _shuffled(numbers: Sequence[int], seed: int) -> Callable[[int, int], list[int]]:
    """A function that gives the numbers of a step's sequences: passes over all, each in another order."""

    def batch(step: int, size: int) -> list[int]:
        chosen = []
        for at in range(step * size, (step + 1) * size):
            epoch, place = divmod(at, len(numbers))
            generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
            chosen.append(numbers[int(torch.randperm(len(numbers), generator=generator)[place])])
        return chosen

    return batch
