"""Tasks of lm-evaluation-harness (the package lm-eval, an optional extra), run on a dense model or a bundle.

lm-eval is imported when a task of it is read, not before.
"""

from kquant_cli.evaluation.harness.catalogue import HarnessTask, read_task
from kquant_cli.evaluation.harness.run import HarnessResult, run_task

__all__ = ["HarnessResult", "HarnessTask", "read_task", "run_task"]
