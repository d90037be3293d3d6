"""Choose one option for each matrix: least predicted loss within a budget of bytes, exactly.

    minimise  sum_i losses_i[j_i]    subject to    sum_i sizes_i[j_i] <= budget

This is the multiple-choice knapsack problem, solved as in Pisinger (European Journal of Operational Research 83, 1995):
take the upgrades along each matrix's lower convex hull by loss decrease per byte until one does not fit. Its rate p
prices the budget, and with it comes a lower bound on any loss within the budget,

    sum_i min_j (losses_i[j] + p sizes_i[j]) - p budget

An option that costs more at that price than the least by more than the gap between this bound and the best choice known
is in no better choice. The few options left go through dynamic programming over the matrices, whose states are the
Pareto front of (bytes, loss) in exact bytes, pruned by the same gap. Only where a front has more than `states` points
is it discretised: of each of `states` equal intervals of bytes one point stays, that of the least loss with its bytes
priced. It keeps its exact bytes, so that the budget is never exceeded; then the choice may miss the best by a hair.

scipy's milp (HiGHS) finds the same losses, but takes 0.02 to 8 s where this takes 0.001 to 0.7 s (24 to 1000 matrices),
prints lines of its own, and has a fixed absolute gap of 1e-6: where the loss is 1e-4 it misses the best by up to 0.4%
(scripts/bench_knapsack.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import fsum, inf, isfinite

import numpy as np

STATES = 8192
MANY = 1000  # matrices; the states are fewer in proportion where there are more, so that the work is not
_ROUNDING = 1e-12  # relative: sums of losses in different orders


@dataclass(frozen=True)
class Choice:
    """The options of one matrix: `sizes` in bytes and the predicted `losses`, in the same order, any units of loss."""

    name: str
    weights: int
    sizes: tuple[int, ...]
    losses: tuple[float, ...]

    def __post_init__(self) -> None:
        """ValueError unless there is an option, every size is a whole number of bytes and every loss is finite."""
        if not self.sizes or len(self.sizes) != len(self.losses):
            raise ValueError(f"{self.name}: {len(self.sizes)} sizes and {len(self.losses)} losses")
        if not all(isinstance(s, int) and s >= 0 for s in self.sizes) or not all(map(isfinite, self.losses)):
            raise ValueError(f"{self.name}: sizes must be whole bytes and losses finite")


@dataclass(frozen=True)
class _Option:
    """Of the options of one matrix one that no other beats in both: `index` is its place among all."""

    index: int
    size: int
    loss: float


_Table = list[list[_Option]]  # of each matrix, sizes rising and losses falling
_Picks = list[int]  # of each matrix, a place in its part of the table


def allocate(choices: Sequence[Choice], budget_bytes: int, *, states: int = STATES) -> tuple[int, ...]:
    """The index of the option of each matrix: of least total loss, never above the budget; deterministic.

    What is left of the budget holds no option of any one matrix that would lower the loss.

    Raises
    ------
    ValueError
        Even the smallest options exceed the budget.
    """
    table = [_front(choice) for choice in choices]
    smallest = sum(options[0].size for options in table)
    if smallest > budget_bytes:
        raise ValueError(f"the smallest options take {smallest} bytes, above the budget of {budget_bytes}")
    picks, price = _by_rate(table, budget_bytes)
    picks = _spend(table, picks, budget_bytes)
    if price > 0:
        states = max(1, states * MANY // max(MANY, len(table)))
        better = _spend(table, _search(table, budget_bytes, picks, price, states), budget_bytes)
        picks = min(picks, better, key=lambda p: _loss(table, p))
    return tuple(options[pick].index for options, pick in zip(table, picks, strict=True))


def _front(choice: Choice) -> list[_Option]:
    """The options that no other beats, the smallest first; of equals the first."""
    front: list[_Option] = []
    for size, loss, index in sorted(zip(choice.sizes, choice.losses, range(len(choice.sizes)), strict=True)):
        if not front or loss < front[-1].loss:
            front.append(_Option(index, size, loss))
    return front


def _loss(table: _Table, picks: _Picks) -> float:
    return fsum(options[pick].loss for options, pick in zip(table, picks, strict=True))


def _size(table: _Table, picks: _Picks) -> int:
    return sum(options[pick].size for options, pick in zip(table, picks, strict=True))


def _hull(options: list[_Option]) -> list[tuple[float, int]]:
    """The upgrades along the lower convex hull: (loss decrease a byte, falling; the place that it leads to)."""
    hull: list[tuple[float, int]] = [(inf, 0)]
    for place in range(1, len(options)):
        while True:
            start = options[hull[-1][1]]
            rate = (start.loss - options[place].loss) / (options[place].size - start.size)
            if rate < hull[-1][0]:
                break
            hull.pop()
        hull.append((rate, place))
    return hull[1:]


def _by_rate(table: _Table, budget: int) -> tuple[_Picks, float]:
    """Picks by the upgrades of best rate, and the rate of the first that does not fit (0: all fit)."""
    upgrades = [(-rate, matrix, place) for matrix, options in enumerate(table) for rate, place in _hull(options)]
    picks, price, left = [0] * len(table), 0.0, budget - sum(options[0].size for options in table)
    stopped = set()
    for rate, matrix, place in sorted(upgrades):
        step = table[matrix][place].size - table[matrix][picks[matrix]].size
        if matrix not in stopped and step <= left:
            picks[matrix], left = place, left - step
        else:
            stopped.add(matrix)
            price = price or -rate
    return picks, price


def _spend(table: _Table, picks: _Picks, budget: int) -> _Picks:
    """Spend what is left: again and again the option of one matrix that fits and lowers the loss most."""
    picks, left = list(picks), budget - _size(table, picks)
    width = max(map(len, table), default=0)
    sizes = np.full((len(table), width), np.iinfo(np.int64).max)
    losses = np.full((len(table), width), inf)
    for matrix, options in enumerate(table):
        sizes[matrix, : len(options)] = [option.size for option in options]
        losses[matrix, : len(options)] = [option.loss for option in options]
    rows = np.arange(len(table))
    while len(table):
        size, loss = sizes[rows, picks, None], losses[rows, picks, None]
        gain = np.where(sizes - size <= left, loss - losses, -inf)
        matrix, pick = divmod(int(gain.argmax()), width)
        if gain[matrix, pick] <= 0:
            break
        left -= int(sizes[matrix, pick] - sizes[matrix, picks[matrix]])
        picks[matrix] = pick
    return picks


def _search(table: _Table, budget: int, known: _Picks, price: float, states: int) -> _Picks:
    """The best picks, by dynamic programming over the options that the bound does not exclude."""
    least = [min(option.loss + price * option.size for option in options) for options in table]
    slack = _ROUNDING * fsum(map(abs, [*least, price * budget]))
    gap = _loss(table, known) - (fsum(least) - price * budget) + slack
    excess = [[o.loss + price * o.size - low for o in options] for options, low in zip(table, least, strict=True)]
    kept = [[place for place, e in enumerate(over) if e <= gap] for over in excess]
    order = sorted(range(len(table)), key=lambda m: len(kept[m]))  # those without a choice while there is one state
    minima = [min(table[m][place].size for place in kept[m]) for m in order]
    needed_after = list(accumulate(reversed(minima), initial=0))[-2::-1]
    # a state: bytes so far, what its options cost at the price above the least, and where it came from
    size, over = np.zeros(1, np.int64), np.zeros(1)
    steps: list[tuple[np.ndarray, np.ndarray]] = []
    for matrix, needed in zip(order, needed_after, strict=True):
        places = kept[matrix]
        new = np.array([table[matrix][place].size for place in places])
        new_over = np.array([excess[matrix][place] for place in places])
        sums, overs = np.add.outer(size, new).ravel(), np.add.outer(over, new_over).ravel()
        best = np.flatnonzero((overs <= gap) & (sums + needed <= budget))
        if len(places) > 1:
            best = best[_pareto(sums[best], overs[best], price, states)]
        size, over = sums[best], overs[best]
        steps.append((best // len(places), best % len(places)))
        if not len(best):  # all that a discretised front kept turned out too large
            return known
    picks, state = list(known), int(np.argmin(over - price * size))
    for matrix, (parents, chosen) in zip(reversed(order), reversed(steps), strict=True):
        picks[matrix], state = kept[matrix][int(chosen[state])], int(parents[state])
    return picks


def _pareto(size: np.ndarray, over: np.ndarray, price: float, states: int) -> np.ndarray:
    """The places, by rising size, of the points that no other beats in size and loss; at most `states`.

    The loss of a point is over - price * size, but for a constant; of an interval of sizes the least `over` stays.
    """
    loss = over - price * size
    order = np.lexsort((loss, size))
    before = np.concatenate(([inf], np.minimum.accumulate(loss[order])[:-1]))
    front = order[loss[order] < before]
    if len(front) > states:
        interval = (size[front] - size[front[0]]) * states // (size[front[-1]] - size[front[0]] + 1)
        best = np.lexsort((over[front], interval))
        front = front[best[np.append(True, interval[best][1:] != interval[best][:-1])]]
    return front
