"""Open a checkpoint: a folder or a hub id becomes a table of stored tensors, or is refused with a sentence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kquant_cli.checkpoint.config_files import read_config, read_index
from kquant_cli.checkpoint.file_roles import (
    CONFIG,
    INDEX_ENDING,
    files_to_copy,
    find_weights,
    list_files,
    require_model,
)
from kquant_cli.checkpoint.hub import fetch
from kquant_cli.checkpoint.locate import local_folder
from kquant_cli.checkpoint.pytorch_bin import PickledTensor, read_pickled, read_pickled_header
from kquant_cli.checkpoint.quantised import refuse_quantised_config, refuse_quantised_tensors
from kquant_cli.checkpoint.stored_tensor import TensorLike
from kquant_cli.checkpoint.tied_weights import tied_by_storage, tied_by_value
from kquant_cli.errors import KQuantError
from kquant_cli.files.safetensors_format import TensorInfo
from kquant_cli.files.safetensors_reader import read_chunks, read_header, read_tensor


@dataclass(frozen=True)
class Checkpoint:
    """A Hugging Face checkpoint on disk; nothing of its weights is in memory until `read`.

    `revision` is the commit hash of a model from the hub. `tensors` maps names on disk to what is stored, in the order
    of the files; names that `tied` maps to another are not among them. `other_files` are relative to `path`.
    """

    path: Path
    name: str
    revision: str | None
    config: dict[str, Any]
    tensors: Mapping[str, TensorLike]
    tied: Mapping[str, str]
    other_files: tuple[Path, ...]
    infinite: set[str] = field(default_factory=set, compare=False)  # what `content_hash` found to hold infinities

    def read(self, name: str, *, pinned: bool = False) -> Tensor:
        """The tensor `name`, in memory of its own, as it is stored. Raises KQuantError when it cannot be read.

        `pinned`: in memory that a GPU can copy from while others compute; needs CUDA.
        """
        info = self.tensors[name]
        if isinstance(info, TensorInfo):
            return read_tensor(info, pinned=pinned)
        if isinstance(info, PickledTensor):
            return read_pickled(info).pin_memory() if pinned else read_pickled(info)
        raise TypeError(f"{name!r} is in no kind of file that this room knows: {info!r}")

    def pieces(self, name: str) -> Iterator[Tensor]:
        """The entries of the tensor `name` in their order, flat, some MB at a time. Raises as `read` does."""
        info = self.tensors[name]
        if isinstance(info, TensorInfo):
            yield from (torch.frombuffer(chunk, dtype=info.dtype) for chunk in read_chunks(info))
        else:
            yield self.read(name).reshape(-1)


def open_checkpoint(model: str | Path, revision: str | None = None) -> Checkpoint:
    """Open the checkpoint that `model` names: a folder, or the id of a model on the hub (at `revision`).

    Raises KQuantError when there is none, or it is damaged, incomplete, an adapter, or already quantised.
    """
    folder, name, commit = _locate(model, revision)
    names = list_files(folder)
    where = str(folder) if commit is None else f"{name} ({folder})"
    require_model(names, where)
    config = read_config(folder / CONFIG)
    refuse_quantised_config(config, where)
    tensors, tied = _read_headers(folder, names, where, config)
    refuse_quantised_tensors(tensors, where)
    tied = {**tied, **tied_by_value({name: info for name, info in tensors.items() if name not in tied}, config)}
    tensors = {name: info for name, info in tensors.items() if name not in tied}
    return Checkpoint(folder, name, commit, config, tensors, tied, tuple(Path(file) for file in files_to_copy(names)))


def _locate(model: str | Path, revision: str | None) -> tuple[Path, str, str | None]:
    """Folder, name and commit hash of `model`."""
    folder = local_folder(model, revision)
    if folder is not None:
        return folder, folder.resolve().name, None
    text = str(model)
    folder = fetch(text, revision)
    return folder, text, folder.name


def _read_headers(
    folder: Path, names: tuple[str, ...], where: str, config: Mapping[str, Any]
) -> tuple[dict[str, TensorLike], dict[str, str]]:
    """What the weight files hold, by name, and which names share memory."""
    weights = find_weights(names, where)
    weight_map = read_index(folder / weights) if weights.endswith(INDEX_ENDING) else {}
    contents: dict[str, Mapping[str, TensorLike]] = {}
    tied: dict[str, str] = {}
    for file in sorted(set(weight_map.values()) or {weights}):
        if file not in names:
            raise KQuantError(f"{folder / weights} names {file}, which is not in the folder: download it again")
        if file.endswith(".safetensors"):
            contents[file] = read_header(folder / file)
        else:
            contents[file], groups = read_pickled_header(folder / file)
            tied.update(tied_by_storage(groups, config))
    for name, file in weight_map.items():
        if name not in contents[file]:
            raise KQuantError(f"{folder / weights} says that tensor {name!r} is in {file}, which does not hold it")
    return _merge(contents, weight_map, folder), tied


def _merge(
    contents: Mapping[str, Mapping[str, TensorLike]], weight_map: Mapping[str, str], folder: Path
) -> dict[str, TensorLike]:
    """All tensors of all files; of one that two files hold, that in the file which the index names."""
    tensors: dict[str, TensorLike] = {}
    for file, held in contents.items():
        for name, info in held.items():
            if weight_map.get(name, file) != file:
                continue
            if name in tensors:
                raise KQuantError(
                    f"{folder / file} and {tensors[name].file.name} both hold tensor {name!r}, and the index does not"
                )
            tensors[name] = info
    if not tensors:
        raise KQuantError(f"{folder} holds no tensors: {', '.join(contents)} is empty")
    return tensors
