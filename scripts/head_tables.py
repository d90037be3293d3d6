"""What rounding the table of a model's tokens costs (docs/method.md), from the JSON of head_bits.py."""

from __future__ import annotations

from typing import Any

from mdtable import table


def head_bits(values: dict[str, Any]) -> str:
    """Encoder, bits a weight and the mean KL divergence, and what it was measured on."""
    rows = [[row["name"], f"{row['bits']:.2f}", f"{row['kl']:.2g}"] for row in values["rows"]]
    rows_by_columns = " x ".join(map(str, values["shape"]))
    measured = f"A table of {rows_by_columns}, {values['windows']} windows of {values['seqlen']} tokens."
    return f"{table(['encoder', 'bits a weight', 'KL'], rows)}\n\n{measured}"
