"""A model folder's JSON files: its config, and the index that says which shard holds which tensor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kquant_cli.errors import KQuantError
from kquant_cli.files.json_object import JsonRefusals, read_object
from kquant_cli.files.model_sizes import oversized
from kquant_cli.files.safetensors_index import IndexRefusals, weight_map

JSON_REFUSALS = JsonRefusals(
    unreadable="cannot read {path}: {why}",
    invalid="{path} is not valid JSON ({why}): download it again",
    no_object="{path} should hold a JSON object and holds a {kind}",
    too_large="{path} has {size} bytes, and kquant reads at most {most} of such a file: download it again",
)
INDEX_REFUSALS = IndexRefusals(
    no_map="{path} holds no weight_map from tensor names to files: download it again",
    no_file="{path} names {file} for tensor {tensor}: expected the name of a {ending} file",
    outside="{path} names {file}, which is outside the folder: kquant does not follow it",
)


def read_config(path: Path) -> dict[str, Any]:
    """The config.json at `path`. Raises KQuantError when it is no JSON object, is too large, or asks for too much."""
    config = read_object(path, JSON_REFUSALS)
    if why := oversized(config):
        raise KQuantError(f"{path}: {why}: download it again")
    return config


def read_index(path: Path) -> dict[str, str]:
    """The weight map of the index at `path`: tensor name -> file, relative to the index's folder.

    Raises KQuantError when it is damaged or names a file outside that folder.
    """
    index = read_object(path, JSON_REFUSALS)
    ending = "." + path.name.removesuffix(".index.json").rpartition(".")[2]
    return weight_map(index, INDEX_REFUSALS, path=path, ending=ending, subfolders=True)
