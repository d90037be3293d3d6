"""README blocks of models that run from codes, from the files of bench_runtime.py and bench_product.py."""

from __future__ import annotations

import math
from typing import Any

from mdtable import place, table


def runtime(values: dict[str, Any]) -> str:
    """Tokens a second and memory of a bundle and the dense model."""
    headings = ["model", "dtype", "load [s]", "prefill [tokens/s]", "decode [tokens/s]", "floor [tokens/s]"]
    headings += ["read a token [MB]", "parameters [MB]", "loaded [MB]", "peak [MB]"]
    rows = []
    for model in values["models"]:
        mark = "**" if model["kind"] == "bundle" else ""
        sizes = (model[k] for k in ("weight_bytes_per_token", "parameter_bytes", "loaded_memory", "peak_memory"))
        rows.append(
            [
                f"{mark}{model['path']} ({model['kind']}){mark}",
                model["dtype"],
                f"{model['load_seconds']:.1f}",
                f"{model['prefill_tokens_per_second']:.0f}",
                f"{model['decode_tokens_per_second']:.1f}",
                f"{model['floor_tokens_per_second']:.0f}",
                *("" if size is None else f"{size / 1e6:.0f}" for size in sizes),
            ]
        )
    work, saved = values["workload"], values["saved"]
    said = (
        "" if saved is None else f" Of the memory that the bundle saves by arithmetic in 16 bits, {saved:.0%} is seen."
    )
    return (
        f"{table(headings, rows)}\n\nPrompts of {work['prompt']} tokens, {work['new']} new ones; medians of "
        f"{values['rounds']} rounds of a process each, in turns.{said} Machine: {place(values['machine'])}, "
        f"{values['threads']} threads."
    )


def products(values: dict[str, Any]) -> str:
    """The product alone, over the dense one: a row a shape and number of levels."""
    headings = ["matrix", "levels", "bits", "tokens", "ms", "times float32", "times bfloat16", "codes read [GB/s]"]
    rows = []
    for row in values["products"]:
        rows.append(
            [
                f"{row['rows']}×{row['columns']}",
                str(row["levels"]),
                f"{math.log2(row['levels']):.3g}",
                str(row["tokens"]),
                f"{row['ms']:.3g}",
                f"{row['times_float32']:.2f}",
                f"{row['times_bfloat16']:.2f}",
                f"{row['gb_per_s']:.1f}",
            ]
        )
    bandwidth = max(row["bandwidth_gb_per_s"] for row in values["products"])
    return (
        f"{table(headings, rows)}\n\nA sum over a large buffer reads {bandwidth:.1f} GB/s there. Machine: "
        f"{place(values)}, {values['threads']} threads."
    )
