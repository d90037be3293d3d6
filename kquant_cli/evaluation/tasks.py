"""The tasks of `kquant eval --task`: one registry, one entry a task.

A task first reads its data, so that what is missing is said before a model is loaded, and then runs on the model.
"""

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from kquant_cli import demo
from kquant_cli.errors import KQuantError
from kquant_cli.evaluation.options import EvalOptions
from kquant_cli.evaluation.perplexity import PerplexityResult, perplexity
from kquant_cli.evaluation.texts import DATA_FORMATS, Text, text_file, wikitext2
from kquant_cli.runtime import LoadedModel

CAUSAL: Final = "AutoModelForCausalLM"


@dataclass(frozen=True)
class Task:
    """A task: the head it needs, whether it takes `--data`, and how it is read and run."""

    auto_class: str
    takes_data: bool
    read: Callable[[EvalOptions], Any]
    run: Callable[[LoadedModel, Any, EvalOptions], PerplexityResult]


def read_wikitext2(options: EvalOptions) -> Text:
    """WikiText-2's test split, from `options.data` or the hub."""
    return wikitext2(options.data, options.data_format)


def read_text(options: EvalOptions) -> Text:
    """The file `options.data`, as it stands unless its format says otherwise."""
    if options.data is None:
        raise KQuantError("task 'text' measures a text of yours: name its file with --data FILE")
    return text_file(options.data, options.data_format or "text")


def read_demo(options: EvalOptions) -> Text:
    """The text that the package brings."""
    return Text(text_file(demo.demo_text_path(), "text").content, "the demo text of kquant_cli, verbatim")


def _perplexity_task(name: str, read: Callable[[EvalOptions], Text], *, takes_data: bool) -> Task:
    return Task(CAUSAL, takes_data, read, partial(perplexity, task=name))


TASKS: Final[dict[str, Task]] = {
    "wikitext2": _perplexity_task("wikitext2", read_wikitext2, takes_data=True),
    "text": _perplexity_task("text", read_text, takes_data=True),
    "demo": _perplexity_task("demo", read_demo, takes_data=False),
}


def select_tasks(names: str, options: EvalOptions) -> dict[str, Task]:
    """The tasks of a comma-separated list, in its order; refuses names and data options that no task of it knows."""
    chosen = {name: _task(name) for name in (part.strip() for part in names.split(",")) if name}
    if not chosen:
        raise KQuantError(f"--task names no task: use {', '.join(TASKS)}, or several with commas between them")
    if options.data is None and options.data_format is not None:
        raise KQuantError("--data-format says how to read --data, which is missing: give both or neither")
    if options.data is not None and not any(task.takes_data for task in chosen.values()):
        raise KQuantError(f"task '{names}' has its own text: leave --data out, or use --task text")
    if options.data_format not in (None, *DATA_FORMATS):
        raise KQuantError(f"--data-format {options.data_format!r} is not known: use {' or '.join(DATA_FORMATS)}")
    return chosen


def _task(name: str) -> Task:
    if name in TASKS:
        return TASKS[name]
    near = difflib.get_close_matches(name, TASKS, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"the tasks are {', '.join(TASKS)}."
    raise KQuantError(f"task {name!r} is not known: {hint}")
