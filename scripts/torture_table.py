"""The table of scripts/torture.py, from the JSON that it writes (docs/trust.md)."""

from __future__ import annotations

from typing import Any

from mdtable import escaped, place, table


def kinds(values: dict[str, Any]) -> str:
    """What each kind does."""
    return "\n".join(f"- `{row['kind']}`: {row['about']}." for row in values["rows"])


def torture(values: dict[str, Any]) -> str:
    """Cases of each kind by how they ended, and where and for how long they ran."""
    ends = ["cases", "right", "refused", "died", "bad"]
    rows = [[f"`{escaped(row['kind'])}`", *(f"{row[end]:,}" for end in ends)] for row in values["rows"]]
    total = ["all", *(f"{sum(row[end] for row in values['rows']):,}" for end in ends)]
    ran = f"Seed {values['seed']}, {values['seconds'] / 60:.0f} minutes. Machine: {place(values['machine'])}."
    return f"{table(['kind', *ends], [*rows, total])}\n\n{ran}"
