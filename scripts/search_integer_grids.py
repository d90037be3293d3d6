#!/usr/bin/env python3
"""Search the constant codebooks of the annealed encoder: kquant_cli/codebooks/integer_grids.json.

    python scripts/search_integer_grids.py [--levels 2 3 4 ...] [--rows 512] [--json FILE]

A ring whose radius and phase are free may lie nearly on the integers: over all of both, the rings of which rounding
moves the points least are found first (a table of 16 odd points moves them by a third of what chance would). Those are
then annealed on Gaussian rows at every effort, beside a ring of floats that is refitted to each matrix, and the one
that costs least is kept. For an even number of levels the second half is the negative of the first. For 4, 8, 16 and
32 the ring is its own mirror image in both axes, too, and for 4, 8 and 16 all numbers are odd: halves of them are
half-integers of 7 bits, of which the negative is the complement of the bits.

A name that the file has stays as it is: bundles have it. `--json` keeps what each table costs.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from results import machine, write_results
from search_codebooks import SIZE, rows

from kquant_cli.bases import CoupledBases
from kquant_cli.codebooks.integer_grids import FILE, LARGEST, ring_name
from kquant_cli.encoders.annealed.annealing import Sweeps, moving_positions
from kquant_cli.encoders.annealed.least_squares import fit_scales, refit_codebook
from kquant_cli.encoders.annealed.retries import anneal_with_retries
from kquant_cli.encoders.annealed.schedule import (
    HARD_SWEEPS,
    MOVING,
    SWEEPS,
    expected_errors,
    find_schedule,
    integer_points,
    points,
)

ODD, MIRRORED = (4, 8, 16), (4, 8, 16, 32)
SEEDS, CANDIDATES = (3001, 3002), 3
RADII, PHASES = np.arange(80, LARGEST + 0.5, 0.125), (np.arange(400) + 0.5) / 400


def candidates(levels: int) -> list[np.ndarray]:
    """The integer tables (levels, 2) that are nearest to a ring, the nearest first."""
    if levels == 2:  # a second basis is of no use to one sign
        return [np.array([[LARGEST, 0], [-LARGEST, 0]])]
    own = levels // 2 if levels % 2 == 0 else levels
    phases = np.array([0.5]) if levels in MIRRORED else PHASES
    angles = 2 * np.pi * (np.arange(own) + phases[:, None]) / levels
    units = np.stack([np.cos(angles), np.sin(angles)], axis=2)
    found: dict[tuple[int, ...], float] = {}
    for radius in RADII:
        ring = radius * units
        rounded = 2 * np.floor(ring / 2) + 1 if levels in ODD else np.rint(ring)
        moved = np.square(ring - rounded).mean(axis=(1, 2)) / radius**2
        for at in moved.argsort()[:CANDIDATES]:
            if np.abs(rounded[at]).max() <= LARGEST:
                key = tuple(rounded[at].astype(int).ravel())
                found[key] = min(moved[at], found.get(key, np.inf))
    nearest = sorted(found, key=lambda key: found[key])[:CANDIDATES]
    tables = [np.array(key).reshape(own, 2) for key in nearest]
    return [np.concatenate([table, -table]) if levels % 2 == 0 else table for table in tables]


def row_errors(x: torch.Tensor, codebook: torch.Tensor, levels: int, effort: str, refit: bool) -> torch.Tensor:
    """What annealing leaves of each unit row of x, with float16 scales, and the codebook refitted or not."""
    bases, schedule, sweeps = CoupledBases(SIZE, 0), find_schedule("ring", levels, effort), SWEEPS[effort]
    moving = moving_positions(HARD_SWEEPS, SIZE, MOVING, 0)
    drive = Sweeps(codebook, schedule.betas(sweeps), schedule.momenta(sweeps), moving)
    codes, _ = anneal_with_retries(x, bases, drive, expected_errors(levels, effort)["ring"])
    codebook = refit_codebook(x, codes, bases, codebook) if refit else codebook
    decoded = codebook[:, 0][codes.long()] + bases.couple(codebook[:, 1][codes.long()])
    scales = fit_scales(x, decoded).half().float()
    return (x - scales[:, None] * decoded).square().mean(dim=1).double()


def search(levels: int, count: int) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """The best table, and its error beside the refitted ring's at every effort: a row an effort."""
    tables, costs = candidates(levels), []
    for effort in SWEEPS:
        schedule = find_schedule("ring", levels, effort)
        samples = [rows(count, seed) for seed in SEEDS]
        free = points("ring", levels, schedule)
        refitted = torch.cat([row_errors(x, free, levels, effort, True) for x in samples])
        for table in tables:
            book = integer_points(table.tolist(), schedule)
            found = torch.cat([row_errors(x, book, levels, effort, False) for x in samples])
            percent = 100 * (found - refitted) / refitted.mean()
            spread = float(percent.std()) / len(percent) ** 0.5
            costs.append(
                {"levels": levels, "effort": effort, "error": float(found.mean()), "refitted": float(refitted.mean())}
                | {"cost_percent": float(percent.mean()), "standard_error": spread}
            )
    by_table = [costs[at :: len(tables)] for at in range(len(tables))]
    best = min(range(len(tables)), key=lambda at: sum(row["cost_percent"] for row in by_table[at]))
    return tables[best], by_table[best]


def keep(levels: int, table: np.ndarray) -> None:
    """Add a table to the file, a line each, in the order of their levels."""
    kept = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}
    kept = {ring_name(levels): table.tolist()} | kept
    lines = (f' "{name}": {json.dumps(kept[name])}' for name in sorted(kept, key=lambda name: len(kept[name])))
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--levels", type=int, nargs="+", default=[*range(2, 25), 32])
    parser.add_argument("--rows", type=int, default=512, help="of each of two seeds")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    measured: list[dict[str, Any]] = []
    for levels in args.levels:
        table, costs = search(levels, args.rows)
        keep(levels, table)
        measured += costs
        write_results(args.json, {"machine": machine(), "rows": measured})
        print(
            levels, *(f"{c['effort']} {c['cost_percent']:+.2f} ± {c['standard_error']:.2f}%" for c in costs), flush=True
        )


if __name__ == "__main__":
    main()
