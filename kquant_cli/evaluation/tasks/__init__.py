"""The tasks of `kquant eval --task`: one registry, one line a task. A new task is a file here and its line below.

`lm_eval:NAME` is any task of lm-evaluation-harness, which has a registry of its own.
"""

from typing import Final

from kquant_cli.errors import KQuantError
from kquant_cli.evaluation.options import EvalOptions
from kquant_cli.evaluation.tasks.c4 import C4
from kquant_cli.evaluation.tasks.demo import DEMO
from kquant_cli.evaluation.tasks.glue import GLUE
from kquant_cli.evaluation.tasks.lambada import LAMBADA_TEXT, LAMBADA_WORD
from kquant_cli.evaluation.tasks.lm_eval import PREFIX, harness_task
from kquant_cli.evaluation.tasks.ptb import PTB
from kquant_cli.evaluation.tasks.task import Task
from kquant_cli.evaluation.tasks.text import TEXT
from kquant_cli.evaluation.tasks.wikitext2 import WIKITEXT2
from kquant_cli.evaluation.texts import DATA_FORMATS
from kquant_cli.suggestions import near

TASKS: Final[dict[str, Task]] = {
    "wikitext2": WIKITEXT2,
    "text": TEXT,
    "demo": DEMO,
    "ptb": PTB,
    "c4": C4,
    "lambada_text": LAMBADA_TEXT,
    "lambada_word": LAMBADA_WORD,
    **GLUE,
}

# Names for several tasks at once.
GROUPS: Final[dict[str, tuple[str, ...]]] = {"lambada": ("lambada_text", "lambada_word"), "glue": tuple(GLUE)}


def select_tasks(names: str, options: EvalOptions) -> dict[str, Task]:
    """The tasks of a comma-separated list, in its order; refuses names and data options that no task of it knows.

    Those of lm-evaluation-harness come last, as `split_names` has them; whether it knows them, reading them tells.
    """
    chosen: dict[str, Task] = {}
    for name in split_names(names):
        if name.startswith(PREFIX):
            chosen[name] = harness_task(name.removeprefix(PREFIX))
        else:
            chosen |= {member: TASKS[member] for member in _members(name)}
    if not chosen:
        raise KQuantError(f"--task names no task: use {', '.join(_known())}, or several with commas between them")
    if options.data is None and options.data_format is not None:
        raise KQuantError("--data-format says how to read --data, which is missing: give both or neither")
    if options.data is not None and not any("data" in task.reads for task in chosen.values()):
        raise KQuantError(f"task '{names}' has its own text: leave --data out, or use --task text")
    for name in ("data_format", "protocol", "seqlen", "stride"):
        if getattr(options, name) is not None and not any(name in task.reads for task in chosen.values()):
            raise KQuantError(f"--{name.replace('_', '-')} is not used by task '{names}': leave it out")
    if options.data_format not in (None, *DATA_FORMATS):
        raise KQuantError(f"--data-format {options.data_format!r} is not known: use {' or '.join(DATA_FORMATS)}")
    return chosen


def split_names(names: str) -> list[str]:
    """The names of a comma-separated list; all after `lm_eval:` are its own: text,lm_eval:a,b is text and two of it."""
    own, prefix, harness = names.partition(PREFIX)
    found = [part.strip() for part in own.split(",") if part.strip()]
    theirs = [part.strip().removeprefix(PREFIX) for part in harness.split(",") if part.strip()]
    if prefix and not theirs:
        raise KQuantError(f"--task {names} names nothing after '{PREFIX}': give names, as in {PREFIX}hellaswag,piqa")
    return found + [f"{PREFIX}{name}" for name in theirs]


def _members(name: str) -> tuple[str, ...]:
    """The tasks that `name` stands for."""
    if name in _known():
        return GROUPS.get(name, (name,))
    close = near(name.lower(), _known())
    others = f"{', '.join(_known())}, and {PREFIX}NAME for those of lm-evaluation-harness"
    hint = f"did you mean {' or '.join(close)}?" if close else f"the tasks are {others}"
    raise KQuantError(f"task {name!r} is not known: {hint}")


def _known() -> tuple[str, ...]:
    return (*TASKS, *GROUPS)
