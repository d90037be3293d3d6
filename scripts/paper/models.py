"""A model compressed with some settings and then measured: through kquant's pipeline, bundle and evaluation, all of it.

What is measured of the dense model is measured in the same way, without the bundle.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from common import new_parser  # noqa: F401  (puts scripts/ on the path, too)

from kquant_cli.bundle import open_bundle
from kquant_cli.checkpoint import open_checkpoint
from kquant_cli.compress.pipeline import compress
from kquant_cli.compress.plan import make_plan
from kquant_cli.config import DENSE, load_config
from kquant_cli.evaluation import EvalOptions, Task, select_tasks
from kquant_cli.runtime import load_model

CONFIGS = Path(__file__).parents[2] / "configs"
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()


@dataclass(frozen=True)
class Measure:
    """A task with its data, read once."""

    task: Task
    data: Any
    options: EvalOptions

    @classmethod
    def of(cls, name: str, options: EvalOptions) -> Measure:
        """The task of that name; KQuantError where its data is missing."""
        task = select_tasks(name, options)[name]
        return cls(task, task.read(options), options)

    def __call__(self, model: Path) -> dict[str, Any]:
        """The metrics of a dense model or a bundle, and its result's own sentence."""
        loaded = load_model(model, auto_class=self.task.auto_class, device="cpu", dtype="float32")
        result = self.task.run(loaded, self.data, self.options)
        return {"metrics": result.metrics, "counts": result.counts, "data_sha256": result.data_sha256} | {
            "protocol": result.protocol_sentence()
        }


def compressed(
    model: Path, settings: Mapping[str, Any], measure: Measure | None, config: str | None = None
) -> dict[str, Any]:
    """Compress `model` with `settings` (over those of configs/CONFIG), measure the bundle, and say what became of it.

    `bits` are over the encoded weights; `encoded_share` is how much of what was selected is encoded (a matrix that did
    not converge may have been kept dense), `converged_share` how much of it the decomposition brought below its
    tolerance; both are shares of weights. The error is the mean relative squared one over the selected weights.
    Embeddings stay dense, as they do in the papers.
    """
    settings = {"head_bits": DENSE, **settings}
    plan = make_plan(open_checkpoint(model), load_config(CONFIGS / config if config else None, settings))
    with tempfile.TemporaryDirectory() as folder:
        bundle, began = Path(folder) / "bundle", time.perf_counter()
        compress(plan, bundle)
        seconds = time.perf_counter() - began
        manifest = open_bundle(bundle).manifest
        measured = {} if measure is None else measure(bundle)
    matrices, totals = list(manifest["matrices"].values()), manifest["totals"]
    sizes = [matrix["shape"][0] * matrix["shape"][1] for matrix in matrices]

    def share(chosen: list[bool]) -> float:
        return sum(size for size, is_in in zip(sizes, chosen, strict=True) if is_in) / sum(sizes)

    weights = totals["encoded_weights"]
    facts = {
        "seconds": seconds,
        "bits": 8 * totals["encoded_bytes"] / weights if weights else 16.0,
        "error": sum(s * m["relative_error"] ** 2 for s, m in zip(sizes, matrices, strict=True)) / sum(sizes),
        "encoded_share": share([matrix["outcome"] != "kept" for matrix in matrices]),
        "fallback_share": share([matrix["outcome"] == "fallback" for matrix in matrices]),
    }
    if any(matrix["converged"] is not None for matrix in matrices):
        facts["converged_share"] = share([bool(matrix["converged"]) for matrix in matrices])
        facts["iterations"] = max(matrix["iterations"] for matrix in matrices)
    return facts | measured
