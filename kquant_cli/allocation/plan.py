"""An allocation: how many levels each matrix gets, so that a model's average bits a weight stay within a target.

    predicted loss of a matrix = sensitivity * predicted relative squared error of its levels

(arXiv 2411.17525, HIGGS: for small errors the loss of a model is linear in the layers' relative squared errors.)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import fsum
from typing import Any

from kquant_cli.allocation.knapsack import Choice, allocate


@dataclass(frozen=True)
class Option:
    """What a matrix may get: a number of levels, the bytes that it takes then, and the relative squared error left."""

    levels: int
    nbytes: int
    error: float


@dataclass(frozen=True)
class Allotted:
    """What one matrix gets: `loss` is its sensitivity times the predicted error, in the sensitivity's unit."""

    name: str
    weights: int
    levels: int
    nbytes: int
    sensitivity: float
    loss: float


@dataclass(frozen=True)
class AllocationPlan:
    """The levels of all matrices; bits are stored bits (codes, padding, codebooks, scales) over weights."""

    target_bits: float
    source: str  # of the sensitivities: data-free, or the text's file
    matrices: tuple[Allotted, ...]

    @property
    def reached_bits(self) -> float:
        """Stored bits over weights of this allocation, at most `target_bits`."""
        return 8 * sum(m.nbytes for m in self.matrices) / sum(m.weights for m in self.matrices)

    @property
    def loss(self) -> float:
        """The predicted loss of the model: the sum of its matrices'."""
        return fsum(m.loss for m in self.matrices)

    def levels(self) -> dict[str, int]:
        """The levels by the matrix's name."""
        return {m.name: m.levels for m in self.matrices}

    def sentence(self) -> str:
        """How many matrices got how many levels."""
        counts = Counter(m.levels for m in self.matrices)
        shown = ", ".join(
            f"{n} {'matrix' if n == 1 else 'matrices'} with {levels}" for levels, n in sorted(counts.items())
        )
        return f"levels: {shown}; {self.reached_bits:.4f} bits a weight of {self.target_bits}"

    def to_dict(self) -> dict[str, Any]:
        """JSON form for the manifest; `loss_share` is a matrix's part of the predicted loss."""
        total = self.loss or 1.0
        matrices = {m.name: {**asdict(m), "loss_share": m.loss / total} for m in self.matrices}
        for values in matrices.values():
            for key in ("name", "weights", "loss"):
                del values[key]
        return {
            "target_bits": self.target_bits,
            "reached_bits": self.reached_bits,
            "sensitivities": self.source,
            "predicted_loss": self.loss,
            "matrices": matrices,
        }


def plan_levels(
    weights: Mapping[str, int],
    options: Mapping[str, Sequence[Option]],
    sensitivities: Mapping[str, float],
    target_bits: float,
    *,
    source: str,
    together: Sequence[Sequence[str]] = (),
) -> AllocationPlan:
    """The levels of least predicted loss whose stored bytes are at most `target_bits` a weight.

    By the matrix's name: `weights`, how many it has; `options`, what it may get, one alone where a rule fixes it;
    `sensitivities`, loss per relative squared error. `source` says what these were measured on. Those of a group of
    `together` get the same level count, where all have the same ones to choose from.

    Raises
    ------
    ValueError
        Even the smallest options take more than the target.
    """
    groups = [group for group in together if len({tuple(o.levels for o in options[name]) for name in group}) == 1]
    grouped = {name for group in groups for name in group}
    units = [*groups, *([name] for name in weights if name not in grouped)]
    choices = [
        Choice(
            unit[0],
            sum(weights[name] for name in unit),
            tuple(sum(o.nbytes for o in column) for column in zip(*(options[name] for name in unit), strict=True)),
            tuple(
                fsum(sensitivities[name] * o.error for name, o in zip(unit, column, strict=True))
                for column in zip(*(options[name] for name in unit), strict=True)
            ),
        )
        for unit in units
    ]
    budget = int(target_bits * sum(choice.weights for choice in choices) / 8)
    picks = {name: pick for unit, pick in zip(units, allocate(choices, budget), strict=True) for name in unit}
    chosen = {name: options[name][picks[name]] for name in weights}
    allotted = tuple(
        Allotted(name, count, o.levels, o.nbytes, sensitivities[name], sensitivities[name] * o.error)
        for (name, count), o in zip(weights.items(), chosen.values(), strict=True)
    )
    return AllocationPlan(target_bits, source, allotted)
