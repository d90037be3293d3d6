"""Speed as a rich table: models beside each other, and how far each is from what the memory allows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Column, Table

Entry = Mapping[str, Any]
ROWS: Mapping[str, Callable[[Entry], str]] = {
    "dtype": lambda e: escape(e["dtype"]),
    "load, seconds": lambda e: f"{e['load_seconds']:.1f}",
    "prefill, tokens/s": lambda e: f"{e['prefill_tokens_per_second']:.0f}",
    "decode, tokens/s": lambda e: f"{e['decode_tokens_per_second']:.1f}",
    "floor, tokens/s": lambda e: f"{e['floor_tokens_per_second']:.1f}",
    "decode of floor": lambda e: f"{e['decode_tokens_per_second'] / e['floor_tokens_per_second']:.0%}",
    "read a token, MB": lambda e: _megabytes(e["weight_bytes_per_token"]),
    "parameters, MB": lambda e: _megabytes(e["parameter_bytes"]),
    "loaded memory, MB": lambda e: _megabytes(e["loaded_memory"]),
    "peak memory, MB": lambda e: _megabytes(e["peak_memory"]),
}


def speed_table(entries: Sequence[Entry]) -> Table:
    """A column a model, from the JSON of `kquant bench`."""
    names = [escape(f"{Path(entry['path']).name} ({entry['kind']})") for entry in entries]
    table = Table(Column("", no_wrap=True), *(Column(name, justify="right", overflow="fold") for name in names))
    for name, show in ROWS.items():
        table.add_row(name, *(show(entry) for entry in entries))
    return table


def _megabytes(size: int | None) -> str:
    return "" if size is None else f"{size / 1e6:.1f}"
