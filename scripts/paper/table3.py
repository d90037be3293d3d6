#!/usr/bin/env python3
"""Table 3: GLUE scores of fine-tuned encoders at 4 bits: float, uniform, k-means, Kashin, and annealed.

    python scripts/paper/table3.py CLASSIFIERS --data GLUE_FOLDER [--tasks rte mrpc] [--limit N] [--max-iter 6000]

CLASSIFIERS holds one fine-tuned checkpoint a task, in sub-folders named rte, mrpc, ... (scripts/finetune_glue.py makes
them). Uniform has one range a tensor, as in the paper; Kashin is configs/paper-glue.yaml, in which every layer is
encoded. No row but the last has channel scales. Tasks of an earlier run with the same options stay in the file.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import command, earlier, new_parser, save
from models import Measure, compressed

from kquant_cli.errors import KQuantError
from kquant_cli.evaluation import EvalOptions, place_tasks, select_tasks

ROWS: dict[str, tuple[str | None, dict[str, Any]]] = {
    "uniform": (None, {"encoder": "uniform", "bits": 4, "group_size": 0, "calibration": "none"}),
    "k-means": (None, {"encoder": "kmeans", "bits": 4, "calibration": "none", "init": "kmeans++", "restarts": 10}),
    "Kashin (greedy)": ("paper-glue.yaml", {}),
    "annealed": (None, {"bits": 4, "calibration": "none"}),
    "annealed, channel scales": (None, {"bits": 4, "calibration": "random"}),
}
PUBLISHED = {  # arXiv 2404.09737, table 3; two metrics where the task has two
    "RoBERTa-base": {
        "float": {"cola": [59.06], "sst2": [93.8], "rte": [67.87], "stsb": [89.65, 89.49], "mrpc": [87.75, 91.2]},
        "uniform": {"cola": [0.0], "sst2": [49.08], "rte": [52.71], "stsb": [10.08, 9.37], "mrpc": [68.38, 81.22]},
        "k-means": {"cola": [46.97], "sst2": [92.77], "rte": [55.23], "stsb": [79.65, 80.47], "mrpc": [71.32, 75.77]},
        "Kashin (greedy)": {
            **{"cola": [52.09], "sst2": [90.37], "rte": [60.28], "stsb": [87.29, 87.26], "mrpc": [83.08, 87.1]}
        },
    },
    "BERT-base": {
        "float": {"cola": [59.31], "sst2": [91.74], "rte": [64.98], "stsb": [88.94, 88.77], "mrpc": [84.31, 88.81]},
        "uniform": {"cola": [1.24], "sst2": [49.66], "rte": [50.18], "stsb": [-0.21, -0.25], "mrpc": [63.97, 76.02]},
        "k-means": {"cola": [54.43], "sst2": [91.51], "rte": [55.23], "stsb": [85.06, 85.0], "mrpc": [34.55, 8.87]},
        "Kashin (greedy)": {
            **{"cola": [59.65], "sst2": [91.63], "rte": [63.53], "stsb": [88.76, 88.56], "mrpc": [84.8, 89.31]}
        },
    },
}


def measure_task(task: str, model: Path, args: Any) -> list[dict[str, Any]]:
    """All rows of one task; scores are times 100, as in the paper."""
    measure = Measure.of(task, EvalOptions(data=args.data, limit=args.limit))
    base = {"task": task, "encoder": _encoder(model)}
    found = [{**base, "row": "float", "bits": 32.0, **measure(model)}]
    for name, (config, settings) in ROWS.items():
        changes = {"max_iter": args.max_iter} if config else {}
        found.append({**base, "row": name, **compressed(model, settings | changes, measure, config)})
    for row in found:
        row["scores"] = [100 * score for score in row["metrics"].values()]
        shown = "/".join(f"{score:.2f}" for score in row["scores"])
        print(f"{task}, {row['row']}: {shown} ({row['bits']:.3f} bits, {row.get('seconds', 0):.0f} s)", flush=True)
    return found


def _encoder(model: Path) -> str:
    """What the classifier was made of, where finetune_glue.py says it."""
    file = model / "finetune.json"
    return json.loads(file.read_text(encoding="utf-8"))["encoder"] if file.exists() else model.parent.name


def main(argv: Sequence[str] | None = None) -> None:
    parser = new_parser(__doc__)
    parser.add_argument("classifiers", type=Path, help="folder with a checkpoint a task")
    parser.add_argument("--data", type=Path, help="folder with the official TSV files; without it, the hub's")
    parser.add_argument("--tasks", nargs="+", help="default: all that have a sub-folder")
    parser.add_argument("--limit", type=int, help="examples a task")
    parser.add_argument("--max-iter", type=int, default=200, help="of the decomposition; the paper's is 6000")
    args = parser.parse_args(argv)
    names = ",".join(args.tasks or ["glue"])
    if not args.classifiers.is_dir():
        raise KQuantError(f"{args.classifiers}: expected a folder with one sub-folder a task, such as rte")
    places = place_tasks(str(args.classifiers), select_tasks(names, EvalOptions(data=args.data)), args.tasks or [])
    facts = {"limit": args.limit, "max_iter": args.max_iter, "published": PUBLISHED}
    rows = [row for row in earlier(args.output, "table3", facts) if row["task"] not in places or not args.tasks]
    for task, model in places.items():
        if any(row["task"] == task for row in rows):
            continue
        rows += measure_task(task, Path(model), args)
        save(args.output, "table3", {**facts, "rows": rows})


if __name__ == "__main__":
    command(main)
