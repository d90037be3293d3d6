"""Classification under the protocol of transformers' run_glue: one forward pass an example, and the task's metrics.

The most likely label is the prediction; a score is the output itself. Examples longer than 128 tokens are cut.
"""

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from kquant_cli.divergence import kl_divergence
from kquant_cli.evaluation.classification.examples import Examples
from kquant_cli.evaluation.classification.labels import label_order
from kquant_cli.evaluation.classification.metrics import difference_error, measure
from kquant_cli.evaluation.classification.outputs import longest_example, outputs
from kquant_cli.evaluation.classification.spec import Spec
from kquant_cli.evaluation.jackknife import means_left_out, standard_error
from kquant_cli.evaluation.options import EvalOptions, Progress
from kquant_cli.evaluation.result import Against, Estimate, ScoresOverExamples, common, dtype_name
from kquant_cli.hf.loading import LoadedModel


@dataclass(frozen=True, kw_only=True)
class ClassificationResult(ScoresOverExamples):
    """The official metrics of a classification task; MNLI's carry the part that they are of in their names."""

    seqlen: int  # the most tokens of an example
    shortened: int  # examples that were cut to that
    labels: tuple[str, ...]  # as the model's outputs have them; () for a score

    def protocol_sentence(self) -> str:
        """run_glue's protocol, and how much was measured."""
        limited = " (--limit)" if self.limit is not None else ""
        shortened = f", {self.shortened:,} of them cut" if self.shortened else ""
        labels = f", outputs: {', '.join(self.labels)}" if self.labels else ", one output: the score"
        return (
            f"run_glue's protocol: at most {self.seqlen} tokens an example; {self.examples:,} examples{limited}"
            f"{shortened}{labels}"
        )


@dataclass(frozen=True)
class _Answers:
    """One model's answers to one part: logits in the task's order of labels (n, labels), and what they predict (n,)."""

    logits: torch.Tensor
    predictions: np.ndarray


def classify(
    loaded: LoadedModel,
    parts: Mapping[str, Examples],
    options: EvalOptions,
    spec: Spec,
    against: LoadedModel | None = None,
) -> ClassificationResult:
    """Measure `loaded`, and the original `against` beside it, on `parts` (by the ending of their metrics' names).

    Raises
    ------
    KQuantError
        A model has another number of outputs than the task has labels, other labels, or gives what is no number.
    """
    models = [loaded] if against is None else [loaded, against]
    orders = [label_order(model, spec) for model in models]
    length = min(longest_example(model, options.seqlen) for model in models)
    examples = {ending: part.first(options.limit) for ending, part in parts.items()}
    total = sum(len(part.texts) for part in examples.values()) * len(models)
    started, done, shortened = time.perf_counter(), 0, 0
    answers: list[dict[str, _Answers]] = [{} for _ in models]
    for model, order, found in zip(models, orders, answers, strict=True):
        for ending, part in examples.items():
            logits, cut = outputs(model, part.texts, length, _shifted(options.progress, done, total))
            found[ending] = _answers(logits[:, list(order)], spec)
            done += len(part.texts)
            shortened += cut if model is loaded else 0
    seconds = time.perf_counter() - started
    labels = {ending: np.array(part.labels) for ending, part in examples.items()}
    named = {name: (metric, ending) for ending in parts for metric in spec.metrics for name in (_name(metric, ending),)}
    scores = [
        {name: measure(metric, labels[end], found[end].predictions) for name, (metric, end) in named.items()}
        for found in answers
    ]
    return ClassificationResult(
        **common(loaded, spec.name, options, "scikit-learn", "scipy"),
        protocol="run_glue",
        data=", ".join(part.description for part in parts.values()),
        data_sha256=_hash(list(parts.values())),
        seconds=seconds,
        against=None if against is None else _against(against, spec, named, labels, answers, scores),
        scores=scores[0],
        examples=sum(len(part.texts) for part in examples.values()),
        seqlen=length,
        shortened=shortened,
        labels=tuple(spec.labels[orders[0].index(output)] for output in range(spec.outputs)) if spec.labels else (),
    )


def _answers(logits: torch.Tensor, spec: Spec) -> _Answers:
    return _Answers(logits, (logits.argmax(dim=1) if spec.labels else logits[:, 0]).numpy())


def _name(metric: str, ending: str) -> str:
    return f"{metric}_{ending}" if ending else metric


def _shifted(progress: Progress, before: int, total: int) -> Progress:
    return lambda done, _: progress(before + done, total)


def _hash(parts: Sequence[Examples]) -> str:
    """A single part's hash, or that of all parts' hashes."""
    hashes = [part.sha256 for part in parts]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def _against(
    original: LoadedModel,
    spec: Spec,
    named: Mapping[str, tuple[str, str]],
    labels: Mapping[str, np.ndarray],
    answers: Sequence[Mapping[str, _Answers]],
    scores: Sequence[Mapping[str, float]],
) -> Against:
    """The comparison: each metric's difference with its jackknife error, and how far the predicted labels are."""
    ours, theirs = answers
    differences = {
        name: Estimate(
            scores[0][name] - scores[1][name],
            difference_error(metric, labels[end], ours[end].predictions, theirs[end].predictions),
        )
        for name, (metric, end) in named.items()
    }
    kl = np.concatenate([kl_divergence(theirs[end].logits, ours[end].logits).numpy() for end in labels])
    same = np.concatenate([ours[end].predictions == theirs[end].predictions for end in labels])
    return Against(
        model=original.path,
        model_kind=original.kind,
        dtype=dtype_name(original),
        metrics=dict(scores[1]),
        differences=differences,
        paired_over="examples",
        per="example",
        kl_divergence=Estimate(float(kl.mean()), standard_error(means_left_out(kl))) if spec.labels else None,
        agreement=float(same.mean()) if spec.labels else None,
    )
