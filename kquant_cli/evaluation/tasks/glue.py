"""`glue`: the nine tasks of GLUE (arXiv 1804.07461), each on its validation split, for classifiers trained for it.

Names, columns and order of labels are those of the hub's nyu-mll/glue; the TSV columns those of the official files.
"""

from functools import partial
from typing import Final

from kquant_cli.errors import KQuantError
from kquant_cli.evaluation.classification import Examples, Spec, Tsv, classify, read_examples
from kquant_cli.evaluation.options import EvalOptions
from kquant_cli.evaluation.tasks.task import Task

PAIR: Final = ("sentence1", "sentence2")
ENTAILMENT: Final = ("entailment", "not_entailment")

SPECS: Final = (
    Spec("cola", "CoLA", ("sentence",), ("unacceptable", "acceptable"), ("matthews",), Tsv((3,), 1, marks=(2, " *?#"))),
    Spec("sst2", "SST-2", ("sentence",), ("negative", "positive"), ("accuracy",), Tsv(("sentence",), "label")),
    Spec(
        "mrpc",
        "MRPC",
        PAIR,
        ("not_equivalent", "equivalent"),
        ("accuracy", "f1"),
        Tsv(("#1 String", "#2 String"), "Quality"),
    ),
    Spec(
        "qqp",
        "QQP",
        ("question1", "question2"),
        ("not_duplicate", "duplicate"),
        ("accuracy", "f1"),
        Tsv(("question1", "question2"), "is_duplicate", ragged=True),
    ),
    Spec("stsb", "STS-B", PAIR, (), ("pearson", "spearman"), Tsv(PAIR, "score")),
    Spec(
        "mnli",
        "MNLI",
        ("premise", "hypothesis"),
        ("entailment", "neutral", "contradiction"),
        ("accuracy",),
        Tsv(PAIR, "gold_label", named=True),
        splits=(("matched", "validation_matched"), ("mismatched", "validation_mismatched")),
    ),
    Spec(
        "qnli",
        "QNLI",
        ("question", "sentence"),
        ENTAILMENT,
        ("accuracy",),
        Tsv(("question", "sentence"), "label", named=True),
    ),
    Spec("rte", "RTE", PAIR, ENTAILMENT, ("accuracy",), Tsv(PAIR, "label", named=True)),
    Spec("wnli", "WNLI", PAIR, ENTAILMENT[::-1], ("accuracy",), Tsv(PAIR, "label")),
)


def read(spec: Spec, options: EvalOptions) -> dict[str, Examples]:
    """The task's validation examples by the ending of their metrics' names: "" or, for MNLI, its two parts."""
    if options.limit is not None and options.limit < 1:
        raise KQuantError(f"--limit {options.limit} leaves no example: give 1 or more")
    return {ending: read_examples(spec, options.data, split) for ending, split in spec.splits}


GLUE: Final[dict[str, Task]] = {
    spec.name: Task(
        "AutoModelForSequenceClassification",
        frozenset({"data", "seqlen", "limit"}),
        partial(read, spec),
        partial(classify, spec=spec),
        unit="examples",
        folders=(spec.name,),
    )
    for spec in SPECS
}
