"""`lm_eval:NAME`: a task, group or tag of lm-evaluation-harness; `--data` is a folder with task files of one's own."""

from functools import partial
from typing import Final

from kquant_cli.evaluation.harness import read_task, run_task
from kquant_cli.evaluation.tasks.task import CAUSAL, Task

PREFIX: Final = "lm_eval:"


def harness_task(name: str) -> Task:
    """The harness's `name`, known to it or not: reading it tells."""
    return Task(
        CAUSAL,
        frozenset({"data", "seqlen", "limit"}),
        partial(read_task, name),
        partial(run_task, task=f"{PREFIX}{name}"),
        unit="requests",
    )
