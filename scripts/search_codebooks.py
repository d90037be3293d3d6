#!/usr/bin/env python3
"""Search the codebooks and schedules of the annealed encoder: kquant_cli/encoders/annealed/codebooks.json.

    python scripts/search_codebooks.py [--levels 2 3 4 ...] [--efforts fast balanced best] [--kinds ring product]
                                       [--generations 40]

CMA-ES (the package `cma`: pip install cma) over seven numbers: radius and phase of the ring (or the two factors of the
product), the first and last inverse temperature and the shape of its course, the first and last momentum. What is
minimised is the logarithm of the relative squared error on Gaussian rows, all candidates of a few generations on the
same rows. Each search starts from the result for the next smaller level count. The errors kept are of fresh rows,
with each row's scale fitted. A finished search is written at once, so that the script may be interrupted.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import astuple

import numpy as np
import torch

from kquant_cli.bases import CoupledBases
from kquant_cli.encoders.annealed import schedule as schedules
from kquant_cli.encoders.annealed.annealing import Sweeps, anneal, moving_positions
from kquant_cli.encoders.annealed.least_squares import fit_scales
from kquant_cli.encoders.annealed.schedule import FILE, HARD_SWEEPS, MOVING, SWEEPS, Schedule, points, to_entry

SIZE = 1024
LEVELS = [2, 3, 4, 5, 6, 8, 12, 16, 24, 32, 64, 128, 256]
STEPS = (0.02, 0.05, 0.15, 0.25, 0.1, 0.03, 0.03)  # one standard deviation at the start; betas in logarithms


def rows(count: int, seed: int) -> torch.Tensor:
    """Gaussian rows (count, SIZE) of unit mean square."""
    x = torch.from_numpy(np.random.RandomState(seed).standard_normal((count, SIZE))).float()
    return x / x.square().mean(dim=1, keepdim=True).sqrt()


def error(kind: str, levels: int, effort: str, schedule: Schedule, x: torch.Tensor) -> float:
    """Relative squared error on the rows x with this schedule."""
    bases = CoupledBases(SIZE, 0)
    codebook = points(kind, levels, schedule)
    moving = moving_positions(HARD_SWEEPS, SIZE, MOVING, 0)
    sweeps = SWEEPS[effort]
    codes, _ = anneal(x, bases, Sweeps(codebook, schedule.betas(sweeps), schedule.momenta(sweeps), moving))
    decoded = codebook[:, 0][codes.long()] + bases.couple(codebook[:, 1][codes.long()])
    residual = x - fit_scales(x, decoded)[:, None] * decoded
    return float(residual.square().mean())


def start(kind: str, levels: int, effort: str) -> Schedule:
    """What was found for the nearest level count, with temperatures for this rate; or a guess."""
    if levels == 2:  # a second basis is of no use to one sign: the best is the sign of x times its mean magnitude
        return Schedule((2 / math.pi) ** 0.5, 0.0, 1.0, 20.0, 1.0, 0.1, 0.1)
    searched = [e for e in schedules.load()["searched"] if e["kind"] == kind and e["levels"] > 2]
    known = [e for e in searched if e["effort"] == effort] or searched
    if effort == "best" and any(e["levels"] == levels for e in searched):
        known = [e for e in searched if e["levels"] == levels and e["effort"] == "balanced"] or known
    if not known:
        first, second = (0.96, 0.5) if kind == "ring" else (0.8, 0.3)
        return Schedule(first, second, 1.0, 0.35 * levels**1.8, 0.9, 0.57, 0.6)
    near = min(known, key=lambda e: abs(math.log(e["levels"] / levels)))
    values = {name: near[name] for name in Schedule.__dataclass_fields__}
    ratio = levels / near["levels"]
    values["beta_last"] *= ratio**1.9
    if kind == "product":
        values["second"] /= ratio
    return Schedule(**values)


def to_vector(schedule: Schedule) -> np.ndarray:
    """In units of STEPS."""
    first, second, beta_first, beta_last, shape, *momenta = astuple(schedule)
    return np.array([first, second, math.log(beta_first), math.log(beta_last), shape, *momenta]) / STEPS


def from_vector(vector: np.ndarray) -> Schedule:
    """The inverse, for shapes that make sense."""
    first, second, beta_first, beta_last, shape, *momenta = np.asarray(vector) * STEPS
    return Schedule(first, second, math.exp(beta_first), math.exp(beta_last), max(shape, 0.1), *momenta)


def search(kind: str, levels: int, effort: str, generations: int) -> tuple[Schedule, float]:
    """The best schedule found, and its error on fresh rows."""
    import cma

    count = max(16, min(64, 2**16 * 20 // (SWEEPS[effort] * levels)) // 16 * 16)
    begin = start(kind, levels, effort)
    strategy = cma.CMAEvolutionStrategy(to_vector(begin), 1.0, {"verbose": -9, "seed": 1, "popsize": 12})
    x = rows(count, 100)
    for generation in range(generations):
        candidates = strategy.ask()
        losses = [error(kind, levels, effort, from_vector(c), x) for c in candidates]
        strategy.tell(candidates, [math.log(loss) if math.isfinite(loss) else 9.0 for loss in losses])
        if generation % 10 == 9:
            x = rows(count, 101 + generation)
    fresh = rows(max(64, count), 7)
    found = [from_vector(strategy.mean), begin]
    if generations:
        found.append(from_vector(strategy.result.xbest))
    errors = [error(kind, levels, effort, schedule, fresh) for schedule in found]
    best = int(np.argmin(errors))
    return found[best], errors[best]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--levels", type=int, nargs="+", default=LEVELS)
    parser.add_argument("--efforts", nargs="+", default=list(SWEEPS), choices=list(SWEEPS))
    parser.add_argument("--kinds", nargs="+", default=["ring", "product"], choices=["ring", "product"])
    parser.add_argument("--generations", type=int, default=40)
    args = parser.parse_args()
    for kind in args.kinds:
        for effort in args.efforts:
            for levels in (k for k in args.levels if kind == "ring" or k % 2 == 0):
                began = time.perf_counter()
                schedule, measured = search(kind, levels, effort, args.generations)
                keep(to_entry(kind, levels, effort, schedule, measured))
                gap = 10 * math.log10(measured * levels**2)
                seconds = time.perf_counter() - began
                print(
                    f"{kind} {levels} {effort}: {measured:.5g} ({gap:.2f} dB), {seconds:.0f} s  {schedule}", flush=True
                )


def keep(entry: dict) -> None:
    """Put an entry into the file, in the place of an older and worse one."""
    values = json.loads(FILE.read_text()) if FILE.exists() else {}
    key = ("kind", "effort", "levels")
    old = {tuple(e[k] for k in key): e for e in values.get("searched", [])}
    name = tuple(entry[k] for k in key)
    if name not in old or entry["error"] <= old[name]["error"]:
        old[name] = entry
    order = sorted(old, key=lambda k: (k[0] != "ring", list(SWEEPS).index(k[1]), k[2]))
    lines = ",\n".join("  " + json.dumps(old[k]) for k in order)
    note = "Gaussian rows of 1024, relative squared error; see schedule.py for the names"
    FILE.write_text(
        f'{{\n "made_by": "scripts/search_codebooks.py",\n "measured": "{note}",\n "searched": [\n{lines}\n ]\n}}\n'
    )
    schedules.load.cache_clear()


if __name__ == "__main__":
    main()
