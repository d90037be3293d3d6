#!/usr/bin/env python3
"""Put the measured figures of scripts/results/ into README.md, between the markers <!-- NAME --> and <!-- end -->.

    python scripts/readme.py [--check]

Each block is made from the file that the measuring script wrote (`--json`), with the machine it ran on.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from results import RESULTS

README = Path(__file__).parent.parent / "README.md"


def place(machine: dict[str, Any]) -> str:
    """The machine in a few words."""
    return f"{machine.get('gpu') or machine['cpu']}, {machine['cores']} cores, torch {machine['torch']}"


def table(headings: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; all columns but the first are right-aligned."""
    lines = ["| " + " | ".join(headings) + " |", "|---" + "|---:" * (len(headings) - 1) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def quality(values: dict[str, Any]) -> str:
    """Perplexity, bits and seconds, as scripts/measure_quality.py wrote them."""
    names = list(values["rows"][0]["texts"])
    headings = ["encoder", "bits a weight", "bits a parameter", "rel. sq. error"]
    headings += [f"perplexity, {name}" for name in names] + ["seconds", "not converged"]
    rows = []
    for row in values["rows"]:
        texts = []
        for name in names:
            text = row["texts"][name]
            error = f" ± {text['perplexity'] * text['standard_error']:.2f}" if "seconds" in row else ""
            texts.append(
                f"{text['perplexity']:.2f}{error}" if text["perplexity"] < 1e4 else f"{text['perplexity']:.1e}"
            )
        if "seconds" not in row:
            rows.append([row["method"], "16", "16", "", *texts, "", ""])
            continue
        facts = [f"{row['bits_per_weight']:.3f}", f"{row['bits_per_weight_model']:.3f}"]
        facts.append(f"{row['relative_squared_error']:.5f}")
        rows.append([row["method"], *facts, *texts, f"{row['seconds']:.1f}", str(row["not_converged"])])
    limit = f", the first {values['limit']} windows" if values["limit"] else ""
    return f"{table(headings, rows)}\n\nMachine: {place(values['machine'])}{limit}."


def memory(values: dict[str, Any]) -> str:
    """Peak memory, as scripts/peak_memory.py wrote it."""
    rows = [
        [str(r["layers"]), f"{r['checkpoint_gb']:.2f} GB", f"{r['peak_gb']:.2f} GB", f"{r['seconds']:.0f}"]
        for r in values["rows"]
    ]
    headings = ["layers", "checkpoint", "peak resident set", f"seconds (max-iter {values['rows'][0]['max_iter']})"]
    return f"{table(headings, rows)}\n\nMachine: {place(values['machine'])}."


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
    "quality-demo": ("quality-demo.json", quality),
    "quality-smollm2": ("quality-smollm2.json", quality),
    "speed": ("bench-encode.json", speed),
    "memory": ("memory.json", memory),
}


def filled(readme: str) -> str:
    """README.md with every block made anew."""
    for name, (file, make) in BLOCKS.items():
        text = (RESULTS / file).read_text(encoding="utf-8")
        block = make(json.loads(text) if file.endswith(".json") else text)
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        readme, count = pattern.subn(lambda found, block=block: f"{found[1]}{block}\n{found[2]}", readme)
        if count != 1:
            sys.exit(f"README.md has {count} blocks <!-- {name} -->, expected one")
    return readme


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="only say whether the README is up to date")
    args = parser.parse_args()
    old = README.read_text(encoding="utf-8")
    new = filled(old)
    if args.check and new != old:
        sys.exit("README.md does not show scripts/results: run python scripts/readme.py")
    README.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
