"""Blocks of the time and memory of encoding and of evaluation, from the files of the scripts that measure them."""

from __future__ import annotations

import statistics
from typing import Any

from mdtable import place, table


def annealing(values: dict[str, Any]) -> str:
    """Speed of the annealed encoder, as scripts/bench_annealed.py wrote it."""
    ours = next(r for r in values["methods"] if r["method"] == "annealed, balanced")
    rows = [
        [
            row["method"],
            f"{row['weights'] / row['seconds'] / 1e6:.2f}",
            f"{row['whole_model_seconds']:.0f}",
            f"{row['seconds'] / ours['seconds']:.2f}",
        ]
        for row in values["methods"]
    ]
    first = table(
        ["method", "M weights/s", f"seconds for all of {values['model']}, extrapolated", "over balanced"], rows
    )
    sizes = [
        [
            f"{r['weights'] / 1e6:.1f}",
            str(r["columns"]),
            f"{r['seconds']:.1f}",
            f"{r['weights'] / r['seconds'] / 1e6:.2f}",
        ]
        for r in values["sizes"]
    ]
    second = table(["million weights", "columns", "seconds (fast)", "M weights/s"], sizes)
    found = values["shares"]
    at_16 = 16 * found["a_point_ns"] / (16 * found["a_point_ns"] + found["rest_ns"])
    share = (
        f"A sweep takes {found['a_point_ns']:.2f} ns a weight for each point of the codebook, and "
        f"{found['rest_ns']:.1f} ns for transforms and passes over memory: at 16 points the soft assignment is "
        f"{at_16:.0%} of it."
    )
    return f"{first}\n\n{second}\n\n{share} Machine: {place(values['machine'])}, {values['bits']} bits."


def speed(values: dict[str, Any]) -> str:
    """Times of decomposition and clustering, as scripts/bench_encode.py wrote them."""
    rows = [
        [
            r["size"].replace("x", "×"),
            r["what"],
            f"{r['plain_seconds']:.2f}",
            f"{r['seconds']:.2f}",
            f"{r['weights_per_s'] / 1e6:.1f}",
            f"{r['ratio']:.1f}",
        ]
        for r in values["decomposition"] + values["clustering"]
    ]
    whole = table(["size", "what", "plain [s]", "kquant [s]", "M weights/s", "times as fast"], rows)
    rows = [
        [
            r["size"].replace("x", "×"),
            r["what"],
            f"{r['transform_ms']:.1f} ms",
            f"{r['elementwise_ms']:.1f} ms",
            f"{r['elementwise_gb_per_s']:.1f} GB/s",
        ]
        for r in values["iteration"]
    ]
    parts = table(["size", "basis", "transform of the signs", "other passes", "their memory traffic"], rows)
    machine = values["machine"]
    copy = f"a plain copy moves {machine['copy_gb_per_s']} GB/s there"
    return f"{whole}\n\nOne iteration, in parts:\n\n{parts}\n\nMachine: {place(machine)}; {copy}."


def memory(values: dict[str, Any]) -> str:
    """Peak memory, as scripts/peak_memory.py wrote it."""
    rows = [
        [
            r["encoder"],
            str(r["layers"]),
            f"{r['checkpoint_gb']:.2f} GB",
            f"{r['peak_gb']:.2f} GB",
            f"{r['seconds']:.0f}",
        ]
        for r in values["rows"]
    ]
    headings = ["encoder", "layers", "checkpoint", "peak resident set", "seconds"]
    return f"{table(headings, rows)}\n\nMachine: {place(values['machine'])}."


def overhead(values: dict[str, Any]) -> str:
    """Evaluation against a bare loop, as scripts/eval_overhead.py wrote it."""
    bare, ours = (statistics.median(values["seconds"][name]) for name in ("bare", "kquant"))
    shape = f"{values['windows']} × {values['seqlen']}"
    row = [values["model"], shape, values["dtype"], f"{bare:.2f}", f"{ours:.2f}", f"{values['ratio']:.3f}"]
    headings = ["model", "windows", "dtype", "bare loop [s]", "kquant [s]", "ratio"]
    rounds, threads = len(values["seconds"]["bare"]), values["threads"]
    plural = "" if threads == 1 else "s"
    return (
        f"{table(headings, [row])}\n\nMedians of {rounds} runs in turn, {threads} thread{plural} on "
        f"{values['device']}. Machine: {place(values['machine'])}."
    )
