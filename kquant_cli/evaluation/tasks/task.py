"""What a task is: how its data is read, so that what is missing is said before a model is loaded, and how it runs."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from kquant_cli.evaluation.options import EvalOptions
from kquant_cli.evaluation.perplexity import perplexity
from kquant_cli.evaluation.result import Result
from kquant_cli.evaluation.texts import Text

CAUSAL: Final = "AutoModelForCausalLM"
TEXT_OPTIONS: Final = frozenset({"data", "protocol", "seqlen", "stride", "limit"})


@dataclass(frozen=True)
class Task:
    """A task: the head it needs, the fields of EvalOptions that mean something to it, and how it is read and run.

    `run(loaded, data, options, against=None)` takes what `read(options)` gave. `unit` is what progress counts.
    `folders`: what the task's own checkpoint may be called in a folder of checkpoints; none for a task that needs none.
    """

    auto_class: str
    reads: frozenset[str]
    read: Callable[[EvalOptions], Any]
    run: Callable[..., Result]
    unit: str = "windows"
    folders: tuple[str, ...] = ()


def perplexity_task(
    name: str, read: Callable[[EvalOptions], Text], *, reads: frozenset[str] = TEXT_OPTIONS, protocol: str = "gptq"
) -> Task:
    """The perplexity of a text, by default under `protocol`."""
    return Task(CAUSAL, reads, read, partial(perplexity, task=name, protocol=protocol))
