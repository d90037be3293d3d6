"""Open a checkpoint: a folder or a hub id becomes a table of stored tensors, or is refused with a sentence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kquant_cli.checkpoint.config_files import read_config, read_index
from kquant_cli.checkpoint.file_roles import (
    CONFIG,
    INDEX_ENDING,
    MOST_BYTES,
    files_to_copy,
    find_weights,
    is_asked_for,
    list_files,
    require_model,
    unknown_files,
)
from kquant_cli.checkpoint.hub import fetch
from kquant_cli.checkpoint.locate import local_folder
from kquant_cli.checkpoint.pytorch_bin import PickledTensor, read_pickled, read_pickled_header
from kquant_cli.checkpoint.quantised import refuse_quantised_config, refuse_quantised_tensors
from kquant_cli.checkpoint.seen import Seen, changed
from kquant_cli.checkpoint.stored_tensor import TensorLike
from kquant_cli.checkpoint.tied_weights import tied_by_storage, tied_by_value
from kquant_cli.errors import KQuantError
from kquant_cli.files.safe_names import leads_outside
from kquant_cli.files.safetensors_format import TensorInfo
from kquant_cli.files.safetensors_reader import read_chunks, read_header, read_tensor
from kquant_cli.files.tensor_sums import tensor_sum

NAMED = 8  # files that a sentence names


@dataclass(frozen=True)
class Checkpoint:
    """A Hugging Face checkpoint on disk; nothing of its weights is in memory until `read`.

    `revision` is the commit hash of a model from the hub. `tensors` maps names on disk to what is stored, in the order
    of the files; names that `tied` maps to another are not among them. `other_files`, relative to `path`, are those
    that a bundle gets a copy of; `left_out`: sentences on others. `seen`: what is compared with whenever something is
    read.
    """

    path: Path
    name: str
    revision: str | None
    config: dict[str, Any]
    tensors: Mapping[str, TensorLike]
    tied: Mapping[str, str]
    other_files: tuple[Path, ...]
    left_out: tuple[str, ...] = ()
    seen: Seen = field(default_factory=Seen, compare=False, repr=False)
    infinite: set[str] = field(default_factory=set, compare=False)  # what `content_hash` found to hold infinities

    def read(self, name: str, *, pinned: bool = False) -> Tensor:
        """The tensor `name`, in memory of its own, as it is stored.

        Raises KQuantError when it cannot be read, or is not what it was when the checkpoint was opened and hashed.

        `pinned`: in memory that a GPU can copy from while others compute; needs CUDA.
        """
        file = self.tensors[name].file
        try:
            tensor = self._read(name, pinned)
        except KQuantError:
            self.seen.require_unchanged([file])  # says rather what has happened
            raise
        self.seen.require_unchanged([file])
        if name in self.seen.sums and tensor_sum(tensor) != self.seen.sums[name]:
            raise changed(file, f" (tensor {name!r} has other values)")
        return tensor

    def _read(self, name: str, pinned: bool) -> Tensor:
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

    def require_unchanged(self) -> None:
        """KQuantError, naming it, where a file of the checkpoint is not what it was when it was opened."""
        self.seen.require_unchanged()


def open_checkpoint(model: str | Path, revision: str | None = None, copy_files: Sequence[str] = ()) -> Checkpoint:
    """Open the checkpoint that `model` names: a folder, or the id of a model on the hub (at `revision`).

    `copy_files`: patterns of files that a bundle is to get beside the known companions.

    Raises KQuantError when there is none, or it is damaged, incomplete, an adapter, or already quantised.
    """
    folder, name, commit = _locate(model, revision, copy_files)
    names = list_files(folder)
    where = str(folder) if commit is None else f"{name} ({folder})"
    require_model(names, where)
    seen = Seen()
    seen.note([folder / CONFIG])
    config = read_config(folder / CONFIG)
    refuse_quantised_config(config, where)
    tensors, tied = _read_headers(folder, names, where, config, seen)
    refuse_quantised_tensors(tensors, where)
    tied = {**tied, **tied_by_value({name: info for name, info in tensors.items() if name not in tied}, config)}
    tensors = {name: info for name, info in tensors.items() if name not in tied}
    copied, left_out = _companions(folder, names, copy_files, "auto_map" in config)
    seen.note(folder / file for file in copied)
    return Checkpoint(folder, name, commit, config, tensors, tied, tuple(map(Path, copied)), left_out, seen)


def _companions(
    folder: Path, names: Sequence[str], patterns: Sequence[str], with_code: bool
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The files to be copied, and sentences on those that are not; what the user asks for is, link or large."""
    found = files_to_copy(names, patterns, with_code=with_code)
    free = [name for name in found if not is_asked_for(name, patterns)]
    links = [name for name in free if leads_outside(folder, name)]
    large = [name for name in free if name not in links and (folder / name).stat().st_size > MOST_BYTES]
    reasons = (
        (unknown_files(names, found), "kquant knows no role for them"),
        (links, "they lie elsewhere, behind links"),
        (large, f"they have more than {MOST_BYTES / 1e9:.0f} GB"),
    )
    said = tuple(
        f"not copied from {folder}, since {why}: {_listed(files)}; --copy PATTERN copies what it fits"
        for files, why in reasons
        if files
    )
    return tuple(name for name in found if name not in links and name not in large), said


def _listed(names: Sequence[str]) -> str:
    shown = [name if name.isprintable() else ascii(name) for name in names[:NAMED]]
    return ", ".join(shown) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


def _locate(model: str | Path, revision: str | None, copy_files: Sequence[str]) -> tuple[Path, str, str | None]:
    """Folder, name and commit hash of `model`."""
    folder = local_folder(model, revision)
    if folder is not None:
        return folder, folder.resolve().name, None
    text = str(model)
    folder = fetch(text, revision, copy_files)
    return folder, text, folder.name


def _read_headers(
    folder: Path, names: tuple[str, ...], where: str, config: Mapping[str, Any], seen: Seen
) -> tuple[dict[str, TensorLike], dict[str, str]]:
    """What the weight files hold, by name, and which names share memory."""
    weights = find_weights(names, where)
    seen.note([folder / weights])
    weight_map = read_index(folder / weights) if weights.endswith(INDEX_ENDING) else {}
    contents: dict[str, Mapping[str, TensorLike]] = {}
    tied: dict[str, str] = {}
    for file in sorted(set(weight_map.values()) or {weights}):
        if file not in names:
            raise KQuantError(f"{folder / weights} names {file}, which is not in the folder: download it again")
        seen.note([folder / file])
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
