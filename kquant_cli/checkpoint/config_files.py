"""A model folder's JSON files: its config, and the index that says which shard holds which tensor."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from kquant_cli.errors import KQuantError


def read_config(path: Path) -> dict[str, Any]:
    """The config.json at `path`. Raises KQuantError when it is not a JSON object."""
    return _read_object(path)


def read_index(path: Path) -> dict[str, str]:
    """The weight map of the index at `path`: tensor name -> file, relative to the index's folder.

    Raises KQuantError when it is damaged or names a file outside that folder.
    """
    weight_map = _read_object(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise KQuantError(f"{path} holds no weight_map from tensor names to files: download it again")
    ending = path.name.removesuffix(".index.json").rpartition(".")[2]
    for tensor, file in weight_map.items():
        if not isinstance(file, str) or not file.endswith(f".{ending}"):
            raise KQuantError(f"{path} names {file!r} for tensor {tensor!r}: expected the name of a .{ending} file")
        if ".." in PurePosixPath(file).parts or PureWindowsPath(file).anchor or "\\" in file:
            raise KQuantError(f"{path} names {file!r}, which is outside the folder: kquant does not follow it")
    return weight_map


def _read_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise KQuantError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise KQuantError(f"{path} is not valid JSON ({error}): download it again") from error
    if not isinstance(content, dict):
        raise KQuantError(f"{path} should hold a JSON object and holds a {type(content).__name__}")
    return content
