"""Finds tasks among those that come with lm-evaluation-harness and those of a folder, and reads their data.

A task file (YAML) of the user's folder may run Python, as the harness allows it: it is the user's own program. Tasks
that let the model write code and run it are refused when they run, as the harness refuses them by default.
"""

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from kquant_cli.errors import KQuantError
from kquant_cli.evaluation.harness.quiet import quiet
from kquant_cli.evaluation.options import EvalOptions
from kquant_cli.hf.hub_data import HUB_ERRORS, cache_alone_if_unreachable
from kquant_cli.suggestions import near


@dataclass(frozen=True)
class HarnessTask:
    """What the harness calls a task, a group or a tag, loaded with its data."""

    name: str
    manager: Any  # lm_eval.tasks.TaskManager
    parts: tuple[Any, ...]  # the task, the group, or the tasks of the tag


def read_task(name: str, options: EvalOptions) -> HarnessTask:
    """The harness's task `name`, with `options.data` as a further folder of task files.

    Raises
    ------
    KQuantError
        lm-eval is not installed, the task is not known, or its data are not to be had.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise KQuantError(
            f"task 'lm_eval:{name}' is run by the package lm-eval, which is not installed: pip install lm-eval"
        )
    if options.limit is not None and options.limit < 1:
        raise KQuantError(f"--limit {options.limit} leaves no example: give 1 or more")
    if options.data is not None and not options.data.is_dir():
        raise KQuantError(
            f"--data {options.data} is no folder: for 'lm_eval:{name}' give a folder with task files (YAML), or leave "
            "--data out for the tasks that come with lm-evaluation-harness"
        )
    with quiet():
        manager = _manager(options.data)
        if name not in manager.task_index:
            raise KQuantError(_unknown(name, manager, options.data))
        return _load(name, manager)


@lru_cache(maxsize=2)
def _manager(folder: Path | None) -> Any:
    """The index of all tasks: it takes seconds, for there are fifteen thousand files."""
    from lm_eval.tasks import TaskManager  # noqa: PLC0415 (optional, and slow to import)

    return TaskManager(include_path=None if folder is None else str(folder))


def _unknown(name: str, manager: Any, folder: Path | None) -> str:
    close = near(name, manager.all_tasks, cutoff=0.6)
    hint = f"did you mean {' or '.join(close)}?" if close else "`lm-eval ls tasks` lists all"
    place = "" if folder is None else f" nor to the task files of {folder}"
    return f"task {name!r} is not known to lm-evaluation-harness{place}: {hint}"


def _load(name: str, manager: Any) -> HarnessTask:
    """Make the task, which loads its data: from the cache, the hub, or where its file says."""
    wanted = next(_hub_datasets(name, manager), None)
    try:
        with cache_alone_if_unreachable(wanted):
            loaded = manager.load(name)
    except HUB_ERRORS as error:
        if wanted is None:
            raise KQuantError(f"{_cannot(name)} ({_reason(error)}): see to the data that its file names") from error
        raise KQuantError(
            f"the data of 'lm_eval:{name}' are neither in the cache nor available from the hub ({wanted}; "
            f"{_reason(error)}): run it once where there is a network, and bring its cache (the folder HF_HOME)"
        ) from error
    except Exception as error:  # a task file is a program of its own
        raise KQuantError(f"{_cannot(name)} ({type(error).__name__}: {_reason(error)})") from error
    group = loaded["groups"].get(name)
    return HarnessTask(name, manager, tuple(loaded["tasks"].values()) if group is None else (group,))


def _hub_datasets(name: str, manager: Any) -> Iterator[str]:
    """The data sets on the hub that a task, or the members of a group or tag, name; formats such as json are none."""
    entry = manager.task_index.get(name)
    if entry is None:
        return
    config = entry.cfg or {}
    path = config.get("dataset_path")
    if isinstance(path, str) and path.count("/") == 1 and not Path(path).exists():
        yield path
    members = config.get("task")
    for member in (*(members if isinstance(members, list) else ()), *(entry.tags if entry.cfg is None else ())):
        if isinstance(member, str) and member != name:
            yield from _hub_datasets(member, manager)


def _cannot(name: str) -> str:
    return f"lm-evaluation-harness cannot make its task {name!r}"


def _reason(error: Exception) -> str:
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__).rstrip(".")
