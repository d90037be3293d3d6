"""The constant codebooks in the documents: their points (docs/format.md) and what they cost (docs/results.md)."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Any

from mdtable import table

from kquant_cli.codebooks.integer_grids import integer_grids


def grids(_: object) -> str:
    """The points of every constant codebook by name; of an even number of them the first half."""
    return "\n".join(["```", *_lines(), "```"])


def _lines() -> Iterator[str]:
    for name, points in integer_grids().items():
        own = points[: len(points) // 2] if len(points) % 2 == 0 else points
        text = " ".join(f"({u},~{v})" for u, v in own)  # no break within a pair
        lines = textwrap.wrap(f"{name}: {text}", 116, subsequent_indent="    ", break_long_words=False)
        yield from (line.replace("~", " ") for line in lines)


def costs(values: dict[str, Any]) -> str:
    """The squared error of a constant codebook over that of a ring refitted to each matrix, by levels and effort."""
    rows: dict[int, dict[str, Any]] = {}
    for row in values["rows"]:
        rows.setdefault(row["levels"], {})[row["effort"]] = row
    efforts = ("fast", "balanced", "best")
    return table(
        ["levels", *(f"{effort}: error, change" for effort in efforts)],
        [[str(levels), *(_cost(rows[levels][effort]) for effort in efforts)] for levels in sorted(rows)],
    )


def _cost(row: dict[str, Any]) -> str:
    return f"{row['error']:.4g}, {row['cost_percent']:+.2f} ± {row['standard_error']:.2f}%"
