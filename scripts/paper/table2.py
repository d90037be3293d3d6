#!/usr/bin/env python3
"""Table 2: perplexity on LAMBADA of a model at 8 and 4 bits, uniform and Kashin, by the paper's protocol.

    python scripts/paper/table2.py --data lambada_test_plain_text.txt [--model FOLDER ...] [--limit 400]

Protocol: the test texts joined by spaces, windows of the model's maximum (or --seqlen) that end every 512 tokens (or
the window, if shorter), only new tokens counted. As in the authors' code, `Kashin b bits, bad layers dense` leaves a
layer alone that has not converged after --max-iter steps (`encoded_share` says how much was encoded at all); `4 bits +
Kashin 6 bits` gives such layers to uniform 4 bits; in `all layers` they are encoded as they are. Uniform: one range a
tensor, or groups of 128 columns, which stand in for bitsandbytes' blocks. No row but the last has channel scales.
Rows of an earlier run with the same options stay in the file.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import command, earlier, new_parser, save
from models import Measure, compressed

from kquant_cli.demo import demo_model_path
from kquant_cli.evaluation import EvalOptions

PAPER = "paper-opt.yaml"
ROWS: dict[str, tuple[str | None, dict[str, Any]]] = {  # name: file of settings, and what is set beside it
    "uniform 8 bits": (None, {"encoder": "uniform", "bits": 8, "calibration": "none"}),
    "uniform 4 bits": (None, {"encoder": "uniform", "bits": 4, "calibration": "none"}),
    "uniform 8 bits, one range a tensor": (
        None,
        {"encoder": "uniform", "bits": 8, "group_size": 0, "calibration": "none"},
    ),
    "uniform 4 bits, one range a tensor": (
        None,
        {"encoder": "uniform", "bits": 4, "group_size": 0, "calibration": "none"},
    ),
    "Kashin 4 bits, bad layers dense": (PAPER, {"bits": 4, "on_no_convergence": "keep"}),
    "Kashin 5 bits, bad layers dense": (PAPER, {"bits": 5, "on_no_convergence": "keep"}),
    "Kashin 6 bits, bad layers dense": (PAPER, {"bits": 6, "on_no_convergence": "keep"}),
    "4 bits + Kashin 6 bits": (PAPER, {}),
    "Kashin 4 bits, all layers": (PAPER, {"bits": 4, "on_no_convergence": "encode"}),
    "Kashin 6 bits, all layers": (PAPER, {"bits": 6, "on_no_convergence": "encode"}),
    "annealed 4 bits": (None, {"bits": 4, "calibration": "none"}),
    "annealed 4 bits, channel scales": (None, {"bits": 4, "calibration": "random"}),
}
PUBLISHED = "the paper shows its OPT perplexities as figures; no numeric table of them was to be had"


def measure_model(model: Path, args: Any, found: list[dict[str, Any]], keep: Any) -> None:
    """Add the rows of one model to `found`, and keep them after each."""
    measure = Measure.of("lambada_text", EvalOptions(data=args.data, limit=args.limit, seqlen=args.seqlen))
    done = {row["row"] for row in found if row["model"] == model.name}
    if "float" not in done:
        found.append({"model": model.name, "row": "float", "bits": 16.0, **measure(model)})
        keep()
        print(f"{model.name}, float: {found[-1]['metrics']['perplexity']:.3f}", flush=True)
    for name in args.rows:
        if name in done:
            continue
        config, settings = ROWS[name]
        changes = {"max_iter": args.max_iter, "basis": args.basis} if config else {}
        found.append({"model": model.name, "row": name, **compressed(model, settings | changes, measure, config)})
        keep()
        row = found[-1]
        share = f"{row['encoded_share']:.0%} encoded, {row.get('converged_share', 1):.0%} converged"
        print(
            f"{model.name}, {name}: {row['metrics']['perplexity']:.3f}, {row['bits']:.3f} bits, {share}, "
            f"{row['seconds']:.0f} s",
            flush=True,
        )


def main(argv: Sequence[str] | None = None) -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--data", type=Path, required=True, help="lambada_test_plain_text.txt, or its folder")
    parser.add_argument("--model", type=Path, nargs="+", default=[demo_model_path()], help="folders of checkpoints")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW", help="; ".join(ROWS))
    parser.add_argument("--limit", type=int, default=400, help="windows; the paper's protocol takes all")
    parser.add_argument("--seqlen", type=int, help="tokens a window; default: the model's maximum")
    parser.add_argument("--max-iter", type=int, default=200, help="of the decomposition: the paper's for OPT")
    parser.add_argument("--basis", default="butterfly")
    parser.add_argument("--name", default="table2", help="of the JSON file")
    args = parser.parse_args(argv)
    facts = {"limit": args.limit, "seqlen": args.seqlen, "max_iter": args.max_iter, "basis": args.basis}
    facts |= {"published": PUBLISHED}
    rows = earlier(args.output, args.name, facts)
    for model in args.model:
        measure_model(model, args, rows, lambda: save(args.output, args.name, {**facts, "rows": rows}))


if __name__ == "__main__":
    command(main)
