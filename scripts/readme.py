#!/usr/bin/env python3
"""Put the measured figures of scripts/results/ into the READMEs, between the markers <!-- NAME --> and <!-- end -->.

    python scripts/readme.py [--check]

Each block is made from the file that the measuring script wrote (`--json`), with the machine it ran on.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mdtable import place, table
from paper import tables
from results import RESULTS
from runtime_tables import products, runtime

ROOT = Path(__file__).parent.parent


def errors(values: dict[str, Any]) -> str:
    """Relative squared errors on Gaussian matrices, as scripts/measure_errors.py wrote them."""
    headings = ["bits", "fast", "balanced", "best", "best over the bound", "planar grid", "rotation + Lloyd-Max"]
    headings += ["greedy (paper)", "bound 4^-bits"]
    rows = []
    for row in values["gaussian"]:
        gap = f"{10 * math.log10(row['best'] / row['bound']):.2f} dB"
        others = [f"{row[key]:.3g}" if key in row else "" for key in ("grid", "lloyd_max", "greedy")]
        ours = [f"**{row[key]:.3g}**" if key == "best" else f"{row[key]:.3g}" for key in ("fast", "balanced", "best")]
        rows.append([f"{row['rate']:.3f}".rstrip("0").rstrip("."), *ours, gap, *others, f"{row['bound']:.3g}"])
    size, seeds = values["size"], values["seeds"]
    return f"{table(headings, rows)}\n\n{size} x {size}, mean of {seeds} seeds. Machine: {place(values['machine'])}."


def kinds(values: dict[str, Any]) -> str:
    """Errors on other matrices over the Gaussian ones, as scripts/measure_errors.py wrote them."""
    rows = [
        [row["kind"], "×".join(map(str, row["shape"])), *(f"{row[bits]:.3f}" for bits in ("2", "3", "4"))]
        for row in values["others"]
    ]
    return table(["weights", "shape", "2 bits", "3 bits", "4 bits"], rows)


def compared(values: dict[str, Any]) -> str:
    """Perplexities of all methods, as scripts/compare_quality.py wrote them: a row for a rate and method."""
    dense, found = values["dense"], {(r["rate"], r["method"], r["scaled"]): r for r in values["rows"]}
    headings = ["method", "bits a weight", "rel. sq. error", "perplexity", "over annealed", "without channel scales"]
    rows = [["dense", "16", "", f"{math.exp(sum(dense) / len(dense)):.2f}", "", ""]]
    for rate in sorted({row["rate"] for row in values["rows"]}, reverse=True):
        ours = found[rate, "annealed", True]
        names = dict.fromkeys(row["method"] for row in values["rows"] if row["rate"] == rate)
        order = sorted(names, key=lambda name: statistics.fmean(_losses(found, rate, name)))
        for name in order:
            scaled, plain = found.get((rate, name, True)), found.get((rate, name, False))
            facts = scaled or plain
            mark = "**" if name.startswith("annealed") else ""
            cells = [f"{mark}{name}{mark}", f"{facts['bits']:.3f}", f"{facts['error']:.4f}"]
            cells += [_perplexity(scaled, dense), _over(scaled, ours), _perplexity(plain, dense)]
            rows.append(cells)
    windows = f"{len(dense)} windows of {values['seqlen']} tokens" if values["seqlen"] else f"{len(dense)} windows"
    return f"{table(headings, rows)}\n\n{windows}. Machine: {place(values['machine'])}."


def _losses(found: dict[Any, dict[str, Any]], rate: float, name: str) -> list[float]:
    return (found.get((rate, name, True)) or found[rate, name, False])["losses"]


def _perplexity(row: dict[str, Any] | None, dense: list[float]) -> str:
    """The perplexity, and the paired standard error of its difference to the dense model's."""
    if row is None:
        return ""
    value = math.exp(min(statistics.fmean(row["losses"]), 700))
    error = value * difference(row["losses"], dense)[1]
    return f"{value:.2f} ± {error:.2f}" if value < 1e4 else f"{value:.1e}"


def _over(row: dict[str, Any] | None, ours: dict[str, Any]) -> str:
    """The perplexity over annealed's with its paired standard error, in percent."""
    if row is None or row is ours:
        return ""
    log_ratio, error = difference(row["losses"], ours["losses"])
    return f"{100 * math.expm1(log_ratio):+.1f} ± {100 * error:.1f}%" if log_ratio < 2 else "> 7 times"


def difference(losses: list[float], other: list[float]) -> tuple[float, float]:
    """Mean difference of the windows' losses (nats a token), and its paired standard error."""
    pairs = [a - b for a, b in zip(losses, other, strict=True)]
    return statistics.fmean(pairs), statistics.stdev(pairs) / math.sqrt(len(pairs)) if len(pairs) > 1 else 0.0


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


def output(text: str) -> str:
    """What a command printed."""
    return f"```text\n{text.rstrip()}\n```"


BLOCKS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "demo-output": ("demo.txt", output),
    "errors": ("errors.json", errors),
    "kinds": ("errors.json", kinds),
    "compared-smollm2": ("compare-smollm2.json", compared),
    "compared-demo": ("compare-demo.json", compared),
    "annealing": ("bench-annealed.json", annealing),
    "speed": ("bench-encode.json", speed),
    "memory": ("memory.json", memory),
    "runtime": ("bench-runtime.json", runtime),
    "products": ("bench-product.json", products),
    "paper-glue": ("paper/table3.json", tables.short_glue),
    "eval-overhead": ("eval-overhead.json", overhead),
}
READMES = {ROOT / "README.md": BLOCKS, ROOT / "scripts" / "paper" / "README.md": tables.BLOCKS}


def filled(readme: Path) -> str:
    """The file with every block made anew."""
    text = readme.read_text(encoding="utf-8")
    for name, (file, make) in READMES[readme].items():
        result = (RESULTS / file).read_text(encoding="utf-8")
        block = make(json.loads(result) if file.endswith(".json") else result)
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        text, count = pattern.subn(lambda found, block=block: f"{found[1]}{block}\n{found[2]}", text)
        if count != 1:
            sys.exit(f"{readme.relative_to(ROOT)} has {count} blocks <!-- {name} -->, expected one")
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="only say whether the READMEs are up to date")
    args = parser.parse_args()
    for readme in READMES:
        old, new = readme.read_text(encoding="utf-8"), filled(readme)
        if args.check and new != old:
            sys.exit(f"{readme.relative_to(ROOT)} does not show scripts/results: run python scripts/readme.py")
        readme.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
