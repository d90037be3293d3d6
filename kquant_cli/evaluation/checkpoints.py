"""Which checkpoint each task is run on: the model named, or where that is a folder of checkpoints, the task's own."""

from collections.abc import Collection, Mapping

from kquant_cli.checkpoint import checkpoints_within
from kquant_cli.errors import KQuantError
from kquant_cli.evaluation.classification.spec import plain
from kquant_cli.evaluation.tasks import Task


def place_tasks(
    model: str, tasks: Mapping[str, Task], asked: Collection[str], revision: str | None = None
) -> dict[str, str]:
    """The checkpoint of each task, by name; one that was not `asked` for by name is left out where it has none.

    Raises
    ------
    KQuantError
        A task that was asked for has no checkpoint in a folder of checkpoints, none has one, or a group of tasks that
        need one each has but a single one.
    """
    found = checkpoints_within(model, revision)
    special = {name: task for name, task in tasks.items() if task.folders}
    if found is None or not special:
        grouped = [name for name in special if name not in asked]
        if len(grouped) > 1:
            raise KQuantError(
                f"{model} is a single checkpoint, and every task of GLUE needs its own: name one task, such as --task "
                f"{grouped[0]}, or give a folder with one checkpoint a task ({grouped[0]}/, {grouped[1]}/, ...)"
            )
        return dict.fromkeys(tasks, model)
    own = {plain(name): path for name, path in found.items()}
    places = {name: _own(own, task) if task.folders else model for name, task in tasks.items()}
    missing = [name for name in special if places[name] is None]
    if (wanted := [name for name in missing if name in asked]) or len(missing) == len(special):
        raise KQuantError(
            f"{model} holds neither a config.json nor a checkpoint in a sub-folder {(wanted or missing)[0]}/: give a "
            "checkpoint, or a folder with one a task"
        )
    return {name: place for name, place in places.items() if place is not None}


def _own(found: Mapping[str, str], task: Task) -> str | None:
    """The task's checkpoint of those `found`, whose names are without case and punctuation."""
    return next((found[name] for name in task.folders if name in found), None)
