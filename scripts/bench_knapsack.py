"""The allocation's own search beside scipy's mixed-integer solver (HiGHS): loss, bytes above the budget, seconds.

    python scripts/bench_knapsack.py [--limit 60] [--scale 1e-4]

The matrices are those of Llama-like blocks, with all level counts and their stored bytes; sensitivities are random and
spread over four orders of magnitude, all times `--scale`. The solver is asked for no gap (mip_rel_gap=0) within
`--limit` seconds; its absolute gap of 1e-6 cannot be changed, which small losses show.
"""

import argparse
import time
from collections.abc import Sequence
from math import fsum

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from kquant_cli.allocation import Choice, allocate
from kquant_cli.allocation.level_counts import LEVELS
from kquant_cli.config import EncoderConfig
from kquant_cli.packing import row_bytes

SIZES = {24: (256, 1024), 210: (960, 2560), 1000: (2048, 8192)}  # matrices: hidden and inner size


def choices(matrices: int, seed: int, scale: float) -> list[Choice]:
    """As `plan_levels` makes them."""
    draw, (hidden, inner) = np.random.default_rng(seed), SIZES[matrices]
    shapes = [(hidden, hidden)] * 4 + [(inner, hidden)] * 2 + [(hidden, inner)]
    config = EncoderConfig()
    errors = [config.chosen.expected_error(k, config.settings) for k in LEVELS]
    made = []
    for number in range(matrices):
        rows, columns = shapes[number % len(shapes)]
        sensitivity = scale * 10 ** draw.uniform(-2, 2)
        sizes = tuple(rows * row_bytes(columns, k) + 8 * k + 4 * rows for k in LEVELS)
        losses = tuple(sensitivity * error for error in errors)
        made.append(Choice(str(number), rows * columns, sizes, losses))
    return made


def solve(table: Sequence[Choice], budget: int, limit: float) -> tuple[int, ...]:
    """The picks of the solver: one option a matrix, all sizes together within the budget."""
    sizes, losses = (np.array([getattr(c, name) for c in table], float) for name in ("sizes", "losses"))
    matrices, options = sizes.shape
    rows = np.repeat(np.arange(matrices), options)
    one_each = csr_array((np.ones(rows.size), (rows, np.arange(rows.size))))
    constraints = [LinearConstraint(one_each, 1, 1), LinearConstraint(sizes.reshape(1, -1), -np.inf, budget)]
    settings = {"mip_rel_gap": 0.0, "time_limit": limit}
    found = milp(
        losses.ravel(), integrality=np.ones(rows.size), bounds=Bounds(0, 1), constraints=constraints, options=settings
    )
    return tuple(map(int, found.x.reshape(matrices, options).argmax(axis=1)))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--limit", type=float, default=60.0, help="seconds for the solver")
    parser.add_argument("--scale", type=float, default=1.0, help="of the losses")
    asked = parser.parse_args()
    print("matrices  bits  ours: loss, seconds       milp: loss over ours - 1, bytes above the budget, seconds")
    for matrices in SIZES:
        for seed, bits in enumerate((2.5, 3.25, 4.5)):
            table = choices(matrices, seed, asked.scale)
            budget = int(bits * sum(choice.weights for choice in table) / 8)
            results = []
            for search in (allocate, lambda table, budget: solve(table, budget, asked.limit)):
                started = time.perf_counter()
                picks = search(table, budget)
                seconds = time.perf_counter() - started
                loss = fsum(c.losses[p] for c, p in zip(table, picks, strict=True))
                above = sum(c.sizes[p] for c, p in zip(table, picks, strict=True)) - budget
                results.append((loss, above, seconds))
            (ours, _, seconds), (other, above, others) = results
            line = f"{matrices:8}  {bits:4}  {ours:.6e} {seconds:8.3f}   {other / ours - 1:+.3e}"
            print(f"{line} {max(0, above):6} {others:8.3f}", flush=True)


if __name__ == "__main__":
    main()
