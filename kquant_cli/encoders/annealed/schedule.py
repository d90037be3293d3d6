"""Codebooks and schedules: where the centroids lie, how fast the temperature falls, how far a sweep extrapolates.

    ring      K points on a circle: radius (cos a_k, sin a_k),  a_k = 2 pi (k + phase) / K
              (few: integers near a circle, codebooks/integer_grids.py, in the size of that radius; no phase)
    product   K / 2 Lloyd-Max levels of a Gaussian times `first`, each with v = -second and v = +second
              (for an odd K those of K + 1 but the last, which is hardly missed where K is large)

At the fraction x of the sweeps, from 0 to 1:

    beta(x) = beta_first (beta_last / beta_first)^(x^shape)
    momentum(x) = momentum_first + (momentum_last - momentum_first) x

The numbers come from scripts/search_codebooks.py, which writes codebooks.json with the errors that it measured; between
the level counts of the file they are interpolated in log K.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import torch

from kquant_cli.codebooks import lloyd_max

SWEEPS = {"fast": 20, "balanced": 60, "best": 400}
HARD_SWEEPS = 12
MOVING = 0.4  # share of the positions that a hard sweep moves: all at once would oscillate
WORTH = 0.003  # of the squared error: what a constant codebook may cost
FILE = Path(__file__).with_name("codebooks.json")


@dataclass(frozen=True)
class Schedule:
    """The numbers above. For a ring (first, second) = (radius, phase)."""

    first: float
    second: float
    beta_first: float
    beta_last: float
    shape: float
    momentum_first: float
    momentum_last: float

    def betas(self, sweeps: int) -> torch.Tensor:
        """Inverse temperatures (sweeps,), float32."""
        x = _fractions(sweeps)
        return (self.beta_first * (self.beta_last / self.beta_first) ** (x**self.shape)).float()

    def momenta(self, sweeps: int) -> torch.Tensor:
        """Factors of the extrapolation (sweeps,), float32."""
        return (self.momentum_first + (self.momentum_last - self.momentum_first) * _fractions(sweeps)).float()


def points(kind: str, levels: int, schedule: Schedule) -> torch.Tensor:
    """The codebook (levels, 2), float32, for a weight of unit mean square; `kind` is ring or product."""
    if kind == "ring":
        angles = 2 * math.pi * (torch.arange(levels, dtype=torch.float64) + schedule.second) / levels
        return (schedule.first * torch.stack([angles.cos(), angles.sin()], dim=1)).float()
    u = schedule.first * lloyd_max((levels + 1) // 2)
    v = torch.tensor([-schedule.second, schedule.second], dtype=torch.float64)
    return torch.cartesian_prod(u, v)[:levels].float()


def integer_points(integers: Sequence[Sequence[int]], schedule: Schedule) -> torch.Tensor:
    """A ring of integers (levels, 2) as the codebook, float32, in the ring's size: their root mean square radius."""
    ring = torch.tensor(integers, dtype=torch.float64)
    return (ring * (schedule.first / ring.square().sum(dim=1).mean().sqrt())).float()


def find_schedule(kind: str, levels: int, effort: str) -> Schedule:
    """The searched numbers, interpolated where `levels` was not searched; beyond all that were, those of the last."""
    known = _searched()[kind, effort]
    counts = sorted(known)
    levels = min(max(levels, counts[0]), counts[-1])
    if levels in known:
        return known[levels]
    above = bisect_left(counts, levels)
    low, high = counts[above - 1], counts[above]
    share = math.log(levels / low) / math.log(high / low)
    pairs = zip(astuple(known[low]), astuple(known[high]), strict=True)
    return Schedule(*(a * (b / a) ** share if a > 0 and b > 0 else a + (b - a) * share for a, b in pairs))


def searched_errors(effort: str, kind: str | None = None) -> dict[int, float]:
    """Relative squared error on Gaussian rows by level count, as the search measured it; without `kind` of the better.

    Where the better kind itself was not searched, its error is interpolated.
    """
    chosen = [entry for entry in load()["searched"] if entry["effort"] == effort]
    if kind is None:
        counts = sorted({entry["levels"] for entry in chosen})
        return {levels: min(expected_errors(levels, effort).values()) for levels in counts}
    return {entry["levels"]: entry["error"] for entry in chosen if entry["kind"] == kind}


def better_kind(levels: int, effort: str) -> str:
    """The kind of codebook with less error: rings, but products where the rate asks for more sweeps than there are.

    Rings of few points are constant, which is worth a little.
    """
    errors = expected_errors(levels, effort)
    return "product" if errors.get("product", math.inf) < (1 - WORTH) * errors["ring"] else "ring"


def expected_errors(levels: int, effort: str) -> dict[str, float]:
    """What each kind of codebook leaves; products only where a point less, for an odd count, does not matter."""
    kinds = ("ring",) if levels % 2 and levels < 64 else ("ring", "product")
    return {kind: _expected_error(searched_errors(effort, kind), levels) for kind in kinds}


def _expected_error(errors: dict[int, float], levels: int) -> float:
    """The error at `levels`, linear in logarithms between searched counts; infinite beyond them."""
    if levels in errors:
        return errors[levels]
    below, above = [k for k in errors if k < levels], [k for k in errors if k > levels]
    if not below or not above:
        return math.inf
    low, high = max(below), min(above)
    share = math.log(levels / low) / math.log(high / low)
    return errors[low] ** (1 - share) * errors[high] ** share


@cache
def load() -> dict[str, Any]:
    """The data file."""
    return json.loads(FILE.read_text(encoding="utf-8"))


@cache
def _searched() -> dict[tuple[str, str], dict[int, Schedule]]:
    names = [field.name for field in fields(Schedule)]
    found: dict[tuple[str, str], dict[int, Schedule]] = {}
    for entry in load()["searched"]:
        schedule = Schedule(*(entry[name] for name in names))
        found.setdefault((entry["kind"], entry["effort"]), {})[entry["levels"]] = schedule
    return found


def to_entry(kind: str, levels: int, effort: str, schedule: Schedule, error: float) -> dict[str, Any]:
    """An entry of the data file."""
    rounded = {name: float(f"{value:.5g}") for name, value in asdict(schedule).items()}
    return {"kind": kind, "levels": levels, "effort": effort, **rounded, "error": float(f"{error:.4g}")}


def _fractions(sweeps: int) -> torch.Tensor:
    return torch.linspace(0, 1, sweeps, dtype=torch.float64) if sweeps > 1 else torch.ones(1, dtype=torch.float64)
