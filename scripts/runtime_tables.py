"""Blocks of models that run from codes, from the files of bench_runtime.py and bench_product.py."""

from __future__ import annotations

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
    if peer := values.get("llama.cpp"):
        speeds = [f"{peer['prefill']:.0f}", f"{peer['decode']:.1f}"]
        rows.append([f"{peer['path']} (llama.cpp)", "", "", *speeds, "", "", "", "", ""])
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
    """The product alone, and whole layers of 16 levels: how many times as fast as dense in float32."""
    rows: dict[tuple[int, int, int], dict[int, dict[str, Any]]] = {}
    for row in values["products"]:
        rows.setdefault((row["rows"], row["columns"], row["tokens"]), {})[row["levels"]] = row
    levels = list(next(iter(rows.values())))
    headings = ["matrix", "tokens", *(f"{k} levels" for k in levels), "layer", "layer, bfloat16", "dense bfloat16"]
    headings += ["16 levels read [GB/s]"]
    lines = []
    for (height, width, tokens), found in rows.items():
        first = found[16]
        over = [f"{found[k]['times_float32']:.2f}" for k in levels]
        half = first["times_float32"] / first["times_bfloat16"]
        whole = [f"{first[name]:.2f}" for name in ("layer_times_float32", "layer_bfloat16_times_float32")]
        lines.append([f"{height}×{width}", str(tokens), *over, *whole, f"{half:.2f}", f"{first['gb_per_s']:.1f}"])
    bandwidth = max(row["bandwidth_gb_per_s"] for row in values["products"])
    return (
        f"{table(headings, lines)}\n\nTimes as fast as torch's dense product in float32; a layer is a matrix of 16 "
        f"levels with both transforms and the scale of rows, in one call. A sum over a large buffer "
        f"reads {bandwidth:.1f} GB/s there. Machine: {place(values)}, {values['threads']} threads."
    )
