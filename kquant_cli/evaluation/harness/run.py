"""Runs a task of lm-evaluation-harness as the harness itself does (its simple_evaluate), and keeps what it says.

Numbers and standard errors are the harness's own. Beside the original, the difference of a metric that is a mean over
the examples has a paired standard error over them; for the others there is none.
"""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from kquant_cli.errors import KQuantError
from kquant_cli.evaluation.harness.catalogue import HarnessTask
from kquant_cli.evaluation.harness.quiet import quiet
from kquant_cli.evaluation.jackknife import means_left_out, standard_error
from kquant_cli.evaluation.options import EvalOptions
from kquant_cli.evaluation.precision import full_float32
from kquant_cli.evaluation.result import Against, Estimate, ScoresOverExamples, common, dtype_name
from kquant_cli.evaluation.windows import bounded, shared_maximum
from kquant_cli.hf.causality import require_causal
from kquant_cli.hf.loading import LoadedModel

Report = Mapping[str, Any]  # what simple_evaluate returns
NUMBERS: Final = (int, float, np.number)
HASHED: Final = ("doc_id", "filter", "doc_hash", "prompt_hash", "target_hash")


@dataclass(frozen=True, kw_only=True)
class HarnessResult(ScoresOverExamples):
    """The metrics of one task of the harness; those of a group's or tag's members carry the member's name."""

    standard_errors: dict[str, float | None]
    seqlen: int | None  # the most tokens of an example; None: the harness's default
    task_versions: dict[str, Any]
    num_fewshot: dict[str, int]

    def protocol_sentence(self) -> str:
        """The harness and its version, the task's, and how much was measured."""
        limited = " (--limit)" if self.limit is not None else ""
        task_versions = _one_or_range([str(value) for value in self.task_versions.values()])
        shots = _one_or_range(list(self.num_fewshot.values()))
        return (
            f"lm-evaluation-harness {self.versions['lm_eval']}, task version {task_versions}, {shots}-shot; "
            f"{self.examples:,} examples{limited}"
        )


def run_task(
    loaded: LoadedModel, read: HarnessTask, options: EvalOptions, task: str, against: LoadedModel | None = None
) -> HarnessResult:
    """Run `read` on `loaded`, and on the original `against` beside it.

    Raises
    ------
    KQuantError
        A model sees later tokens, the harness refuses the task for this model, or a token is beyond its vocabulary.
    """
    models = [loaded] if against is None else [loaded, against]
    for model in models:
        require_causal(model.path, model.model)
    maximum = bounded(options.seqlen, shared_maximum([model.model.config for model in models]))
    started = time.perf_counter()
    reports = [_evaluate(model, read, options, maximum) for model in models]
    seconds = time.perf_counter() - started
    ours, *others = reports
    scores, errors = _scores(ours, read.name)
    leaves = ours["configs"]
    return HarnessResult(
        **common(loaded, task, options, "lm_eval", "datasets"),
        protocol="lm-evaluation-harness",
        data=_description(leaves),
        data_sha256=_sha256(ours["samples"]),
        seconds=seconds,
        against=None if against is None else _against(against, read.name, ours, others[0]),
        scores=scores,
        standard_errors=errors,
        examples=sum(ours["n-samples"][name]["effective"] for name in leaves),
        seqlen=maximum,
        task_versions={name: ours["versions"].get(name) for name in leaves},
        num_fewshot={name: ours["n-shot"].get(name, 0) for name in leaves},
    )


def _evaluate(loaded: LoadedModel, read: HarnessTask, options: EvalOptions, maximum: int | None) -> Report:
    from lm_eval import simple_evaluate  # noqa: PLC0415 (optional)

    from kquant_cli.evaluation.harness.model import HarnessModel  # noqa: PLC0415

    with quiet(), full_float32():
        model = HarnessModel(loaded, maximum, options.progress)
        try:
            report: Report = simple_evaluate(
                model=model, tasks=list(read.parts), limit=options.limit, task_manager=read.manager
            )
        except (ValueError, AssertionError, LookupError) as error:
            said = " ".join(str(error).split()) or "it gives no reason"
            raise KQuantError(
                f"lm-evaluation-harness cannot run its task {read.name!r} on {loaded.path} ({type(error).__name__}: "
                f"{said})"
            ) from error
    return report


def _scores(report: Report, name: str) -> tuple[dict[str, float], dict[str, float | None]]:
    """Metrics and their standard errors: the harness keys them `metric,filter` and `metric_stderr,filter`."""
    scores: dict[str, float] = {}
    errors: dict[str, float | None] = {}
    for part in sorted(report["results"], key=lambda part: part != name):  # a group's own numbers first
        entry = report["results"][part]
        for key, value in entry.items():
            metric, comma, filtered = key.partition(",")
            if comma and not metric.endswith("_stderr") and isinstance(value, NUMBERS):
                label = _label(part, metric, filtered, name)
                scores[label] = float(value)
                error = entry.get(f"{metric}_stderr,{filtered}")
                errors[label] = float(error) if isinstance(error, NUMBERS) else None
    return scores, errors


def _label(part: str, metric: str, filtered: str, name: str) -> str:
    """`acc`, `exact_match (strict-match)`, or for a member of a group `member acc`."""
    label = metric if filtered == "none" else f"{metric} ({filtered})"
    return label if part == name else f"{part} {label}"


def _against(original: LoadedModel, name: str, ours: Report, theirs: Report) -> Against:
    """The original's metrics, and the differences, paired over the examples."""
    (scores, _), (before, _) = _scores(ours, name), _scores(theirs, name)
    errors = {
        _label(part, metric, filtered, name): _paired_error(ours, theirs, part, metric, filtered)
        for part in ours["samples"]
        for metric, _, filtered in (key.partition(",") for key in ours["results"][part] if "," in key)
    }
    return Against(
        model=original.path,
        model_kind=original.kind,
        dtype=dtype_name(original),
        metrics=before,
        differences={label: Estimate(scores[label] - before[label], errors.get(label)) for label in scores},
        paired_over="examples",
        per="example",
        kl_divergence=None,
        agreement=None,
    )


def _paired_error(ours: Report, theirs: Report, part: str, metric: str, filtered: str) -> float | None:
    """The standard error of the difference of a metric that is the mean of the examples' own numbers."""
    columns = []
    for report in (ours, theirs):
        values = [row.get(metric) for row in report["samples"][part] if row["filter"] == filtered]
        if not values or not all(isinstance(value, NUMBERS) for value in values):
            return None
        column = np.array(values, dtype=float)
        if not np.isclose(column.mean(), report["results"][part][f"{metric},{filtered}"], rtol=1e-9, atol=1e-12):
            return None
        columns.append(column)
    return standard_error(means_left_out(columns[0] - columns[1]))


def _description(configs: Mapping[str, Mapping[str, Any]]) -> str:
    """The data sets in words: each once, and at most three."""
    found = list(dict.fromkeys(_data_set(config) for config in configs.values()))
    return ", ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")


def _data_set(config: Mapping[str, Any]) -> str:
    files = (config.get("dataset_kwargs") or {}).get("data_files")
    split = config.get("test_split") or config.get("validation_split")
    named = (config.get("dataset_path"), config.get("dataset_name"), json.dumps(files) if files else None, split)
    return " ".join(str(part) for part in named if part)


def _sha256(samples: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """SHA-256 of the harness's hashes of every example, its prompt and its target."""
    rows = [[name, *(row[key] for key in HASHED)] for name in sorted(samples) for row in samples[name]]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def _one_or_range(values: Sequence[Any]) -> str:
    different = sorted(set(values))
    return str(different[0]) if len(different) == 1 else f"{different[0]} to {different[-1]}"
