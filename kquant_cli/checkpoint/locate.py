"""What the user's word for a model means: a folder, or an id of a model on the hub; everything else is refused."""

from __future__ import annotations

from pathlib import Path
from stat import S_ISDIR

from kquant_cli.checkpoint.file_roles import CONFIG
from kquant_cli.errors import KQuantError


def local_folder(model: str | Path, revision: str | None = None) -> Path | None:
    """The folder that `model` names, with `~` expanded; None when `model` can only be an id on the hub.

    Raises KQuantError for a file, for a path that is not there or cannot be followed, and for a folder at a revision.
    """
    text = str(model)
    try:
        path = Path(model).expanduser()
        mode = path.stat().st_mode if text else None
    except (FileNotFoundError, NotADirectoryError):
        mode = None
    except (OSError, RuntimeError, ValueError) as error:  # name too long, loop of links; no such user; a NUL within
        reason = getattr(error, "strerror", None) or str(error).rstrip(".")
        raise KQuantError(
            f"{text!r} cannot be looked up ({reason}): expected a model folder, or the id of a model on the hub"
        ) from error
    if mode is None:
        if _is_path(model):
            raise KQuantError(
                f"there is no folder {text!r}: expected a model folder, or the id of a model on the hub (owner/name)"
            )
        return None
    if not S_ISDIR(mode):
        raise KQuantError(f"{text} is a file: expected the folder that holds the model's {CONFIG} and weights")
    if revision is not None:
        raise KQuantError(
            f"a revision ({revision!r}) belongs to a model on the hub, and {text} is a folder: leave it out"
        )
    return path


def checkpoints_within(model: str | Path, revision: str | None = None) -> dict[str, str] | None:
    """The checkpoints in the sub-folders of `model`, path by folder name; None where it is itself one, or on the hub.

    Raises KQuantError when `model` is a path that is no folder.
    """
    folder = local_folder(model, revision)
    if folder is None or (folder / CONFIG).is_file():
        return None
    return {sub.name: str(sub) for sub in sorted(folder.iterdir()) if (sub / CONFIG).is_file()}


def _is_path(model: str | Path) -> bool:
    """Whether `model` is written as no id of the hub is."""
    text = str(model)
    return (
        not text
        or isinstance(model, Path)
        or text[0] in "./~"
        or text[-1] == "/"
        or text.count("/") > 1
        or "\\" in text
    )
