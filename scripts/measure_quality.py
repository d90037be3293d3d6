#!/usr/bin/env python3
"""Perplexity, bits and seconds of every encoder at equal bits, on one model and the same windows of text for all.

    python scripts/measure_quality.py demo --wikitext wiki.test.raw --json scripts/results/quality-demo.json
    python scripts/measure_quality.py SMOLLM2_FOLDER --wikitext wiki.test.raw --limit 16 --bits 4 --json FILE

`demo` is the embedded model, also measured on its own text. Differences between two perplexities are as good as the
paired standard error over the windows, which is printed for the difference to the dense model.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from results import machine, write_results

from kquant_cli import pipeline
from kquant_cli.bundle import open_bundle
from kquant_cli.checkpoint import open_checkpoint
from kquant_cli.config import CompressConfig
from kquant_cli.demo import demo_model_path
from kquant_cli.evaluation import EvalOptions, select_tasks
from kquant_cli.plan import make_plan
from kquant_cli.report import summarise
from kquant_cli.runtime import load_model

METHODS: dict[str, dict[str, Any]] = {
    "greedy, dct": {"basis": "dct"},
    "greedy, hadamard": {"basis": "hadamard"},
    "greedy, butterfly": {"basis": "butterfly"},
    "greedy, qr": {"basis": "qr"},
    "kmeans": {"encoder": "kmeans"},
    "uniform, groups of 128": {"encoder": "uniform", "group_size": 128},
    "uniform, per tensor": {"encoder": "uniform", "group_size": 0},
}


def evaluate(path: Path, texts: dict[str, Any], options: dict[str, EvalOptions]) -> dict[str, Any]:
    """Perplexity and window losses of one model on every text."""
    loaded, found = load_model(str(path)), {}
    for name, text in texts.items():
        result = select_tasks(name, options[name])[name].run(loaded, text, options[name])
        found[name] = {"perplexity": result.perplexity, "losses": list(result.window_nlls), "tokens": result.tokens}
    return found


def compress(source: Path, settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Make the bundle; its bits, error and seconds."""
    plan = make_plan(open_checkpoint(source), CompressConfig(**settings))
    began = time.perf_counter()
    pipeline.compress(plan, folder)
    seconds = time.perf_counter() - began
    summary = summarise(open_bundle(folder, verify=False))
    keys = ("bits_per_weight", "bits_per_weight_model", "encoded_share", "relative_squared_error", "ratio")
    return {"seconds": seconds, "not_converged": len(summary["not_converged"]), **{k: summary[k] for k in keys}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--wikitext", type=Path, help="wiki.test.raw")
    parser.add_argument("--bits", type=int, nargs="+", default=[8, 6, 5, 4, 3])
    parser.add_argument("--limit", type=int, help="windows")
    parser.add_argument("--seqlen", type=int)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()

    source = demo_model_path() if args.model == "demo" else Path(args.model)
    options = {"demo": EvalOptions(limit=args.limit, seqlen=args.seqlen)} if args.model == "demo" else {}
    if args.wikitext:
        options["wikitext2"] = EvalOptions(data=args.wikitext, limit=args.limit, seqlen=args.seqlen)
    texts = {name: select_tasks(name, chosen)[name].read(chosen) for name, chosen in options.items()}
    dense = evaluate(source, texts, options)
    rows: list[dict[str, Any]] = [{"method": "dense", "bits": 16, "texts": dense}]
    report(rows[0], dense)
    for bits in args.bits:
        for method, settings in METHODS.items():
            with tempfile.TemporaryDirectory() as tmp:
                facts = compress(source, {**settings, "bits": bits}, Path(tmp) / "bundle")
                found = evaluate(Path(tmp) / "bundle", texts, options)
            rows.append({"method": method, "bits": bits, "settings": settings, "texts": found, **facts})
            report(rows[-1], dense)
    losses = {name: text["losses"] for name, text in dense.items()}
    for row in rows:
        for name, text in row["texts"].items():
            text["log_difference"], text["standard_error"] = difference(text.pop("losses"), losses[name])
    name = "demo" if args.model == "demo" else source.name
    write_results(args.json, {"machine": machine(), "model": name, "limit": args.limit, "rows": rows})


def difference(losses: list[float], dense: list[float]) -> tuple[float, float]:
    """Mean difference of the window losses to the dense model's (nats a token), and its paired standard error."""
    pairs = [a - b for a, b in zip(losses, dense, strict=True)]
    return statistics.fmean(pairs), statistics.stdev(pairs) / math.sqrt(len(pairs)) if len(pairs) > 1 else 0.0


def report(row: dict[str, Any], dense: dict[str, Any]) -> None:
    """One line a row, as they come."""
    values = []
    for name, text in row["texts"].items():
        mean, error = difference(text["losses"], dense[name]["losses"])
        values.append(f"{name} {text['perplexity']:.3f} (nll {mean:+.4f} +- {error:.4f})")
    bits = f"{row.get('bits_per_weight', 16):.3f} bits"
    print(f"{row['method']:24s} {bits}  {row.get('seconds', 0):6.1f} s  " + "  ".join(values), flush=True)


if __name__ == "__main__":
    main()
