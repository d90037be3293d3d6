"""The index of a checkpoint in shards: which file holds which tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kquant_cli.errors import KQuantError
from kquant_cli.files.safe_names import stays_inside


@dataclass(frozen=True)
class IndexRefusals:
    """What a room says of an index that it cannot use, as format strings: {path}; then {file}, {tensor}, {ending}."""

    no_map: str
    no_file: str
    outside: str


def weight_map(
    index: Mapping[str, Any], refusals: IndexRefusals, *, path: object, ending: str, subfolders: bool
) -> dict[str, str]:
    """Tensor name -> file, from the JSON object `index` that was read from `path`.

    A file is named relative to the index's folder, with `/` between folders if there may be `subfolders`, and ends with
    `ending`.

    Raises
    ------
    KQuantError
        One of `refusals`: there is no such map or it is empty, a name is not that of such a file, or leads outside.
    """
    files = index.get("weight_map")
    if not isinstance(files, dict) or not files:
        raise KQuantError(refusals.no_map.format(path=path))
    for tensor, file in files.items():
        facts = {"path": path, "file": repr(file), "tensor": repr(tensor), "ending": ending}
        if not isinstance(file, str) or not file.endswith(ending):
            raise KQuantError(refusals.no_file.format(**facts))
        if not stays_inside(file) or ("/" in file and not subfolders):
            raise KQuantError(refusals.outside.format(**facts))
    return files
