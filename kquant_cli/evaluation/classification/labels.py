"""In which order a classifier gives a task's labels: by the names in its config, as transformers' run_glue does.

Names such as LABEL_0 say nothing, and mean the task's own order. Names that are not the task's are refused, where
run_glue only warns: with a wrong order every number would be wrong.
"""

import re
from collections.abc import Sequence
from typing import Any

from kquant_cli.errors import KQuantError
from kquant_cli.evaluation.classification.spec import Spec
from kquant_cli.hf.loading import LoadedModel


def label_order(loaded: LoadedModel, spec: Spec) -> tuple[int, ...]:
    """For each label of the task the model's output that stands for it; (0,) for a score.

    Raises
    ------
    KQuantError
        The model has another number of outputs, or its config names labels that are not the task's.
    """
    config = loaded.model.config
    if config.num_labels != spec.outputs:
        needs = f"one for each of {', '.join(spec.labels)}" if spec.labels else "the score"
        raise KQuantError(
            f"{loaded.path} gives {config.num_labels} outputs, and task {spec.name!r} needs {spec.outputs} ({needs}): "
            "give a checkpoint that was trained for it"
        )
    if not spec.labels:
        return (0,)
    named = [names for names in (_from_id2label(config), _from_label2id(config)) if names is not None]
    if not named:
        return tuple(range(spec.outputs))
    if named[0] != named[-1]:
        raise KQuantError(
            f"{loaded.path} names its labels {', '.join(named[0])} in id2label and {', '.join(named[-1])} in label2id: "
            "make its config.json say one thing"
        )
    if named[0] == [str(number) for number in range(spec.outputs)]:
        return tuple(range(spec.outputs))
    if sorted(named[0]) != sorted(spec.labels):
        raise KQuantError(
            f"{loaded.path} names its labels {', '.join(named[0])}, and those of task {spec.name!r} are "
            f"{', '.join(spec.labels)}: give a checkpoint that was trained for it, or correct id2label in its config"
        )
    return tuple(named[0].index(label) for label in spec.labels)


def _from_id2label(config: Any) -> list[str] | None:
    """The outputs' names by id2label; None where it names none."""
    names = getattr(config, "id2label", None) or {}
    return _told([names.get(number) for number in range(config.num_labels)])


def _from_label2id(config: Any) -> list[str] | None:
    """The outputs' names by label2id; None where it names none, or not each output once."""
    numbers = getattr(config, "label2id", None) or {}
    names = {int(number): name for name, number in numbers.items() if str(number).isdecimal()}
    return _told([names.get(number) for number in range(config.num_labels)])


def _told(names: Sequence[Any]) -> list[str] | None:
    """The names in one spelling; None where one is missing, or they are only numbered."""
    if any(name is None for name in names):
        return None
    spelled = [re.sub(r"[\s-]+", "_", str(name).strip().lower()) for name in names]
    return None if all(re.fullmatch(r"label_\d+", name) for name in spelled) else spelled
