"""Folders that are no checkpoint but hold some, one a sub-folder."""

from pathlib import Path

from kquant_cli.checkpoint import local_folder
from kquant_cli.checkpoint.file_roles import CONFIG


def checkpoints_within(model: str | Path, revision: str | None = None) -> dict[str, str] | None:
    """The checkpoints in the sub-folders of `model`, path by folder name; None where it is itself one, or on the hub.

    Raises KQuantError when `model` is a path that is no folder.
    """
    folder = local_folder(model, revision)
    if folder is None or (folder / CONFIG).is_file():
        return None
    return {sub.name: str(sub) for sub in sorted(folder.iterdir()) if (sub / CONFIG).is_file()}
