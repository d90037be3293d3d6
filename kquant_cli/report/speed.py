"""Speed as a rich table: models beside each other, and how far each is from what the memory allows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Column, Table


def speed_table(entries: Sequence[Mapping[str, Any]]) -> Table:
    """A row a model, from the JSON of `kquant bench`."""
    names = [
        "load\ns",
        "prefill\ntok/s",
        "decode\ntok/s",
        "floor\ntok/s",
        "of\nfloor",
        "MB a\ntoken",
        "model\nMB",
        "peak\nMB",
    ]
    columns = [Column(name, justify="right", no_wrap=True) for name in names]
    table = Table(Column("model", overflow="fold", min_width=10), Column("dtype", no_wrap=True), *columns)
    for entry in entries:
        floor = entry["floor_tokens_per_second"]
        table.add_row(
            escape(f"{Path(entry['path']).name} ({entry['kind']})"),
            entry["dtype"],
            f"{entry['load_seconds']:.1f}",
            f"{entry['prefill_tokens_per_second']:.0f}",
            f"{entry['decode_tokens_per_second']:.1f}",
            f"{floor:.0f}",
            f"{entry['decode_tokens_per_second'] / floor:.0%}",
            _megabytes(entry["weight_bytes_per_token"]),
            _megabytes(entry["loaded_memory"]),
            _megabytes(entry["peak_memory"]),
        )
    return table


def _megabytes(size: int | None) -> str:
    return "" if size is None else f"{size / 1e6:.1f}"
