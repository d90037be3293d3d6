"""Finished matrices and the source's other tensors -> the files of a bundle, a tensor and the next in memory."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kquant_cli.bundle.format import (
    CONFIG,
    FORMAT_VERSION,
    INDEX,
    MANIFEST,
    QUANT_METHOD,
    RUN,
)
from kquant_cli.bundle.staging import Staged
from kquant_cli.files.digests import file_sha256
from kquant_cli.files.json_object import strict, write_json
from kquant_cli.files.safetensors_reader import read_tensor
from kquant_cli.files.safetensors_writer import tensor_file
from kquant_cli.overlap import ahead

SHARD_BYTES = 5_000_000_000
RESERVED = (CONFIG, INDEX, MANIFEST, RUN)  # names that the bundle uses itself


@dataclass(frozen=True)
class Entry:
    """A tensor to be written: what it is and how to get it."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    read: Callable[[], torch.Tensor]

    @property
    def nbytes(self) -> int:
        """Bytes it takes."""
        return self.dtype.itemsize * int(torch.Size(self.shape).numel())


def staged_entries(staged: Staged) -> list[Entry]:
    """The tensors of a finished matrix under the names that they have in the bundle."""
    return [
        Entry(f"{staged.name}.{suffix}", info.dtype, info.shape, lambda info=info: read_tensor(info))  # type: ignore[misc]
        for suffix, info in staged.tensors.items()
    ]


@dataclass(frozen=True)
class Written:
    """What was written: the bytes of all tensors, and the SHA-256 of each shard by its name."""

    nbytes: int
    sha256: Mapping[str, str]


def write_weights(folder: Path, entries: Iterable[Entry], shard_bytes: int = SHARD_BYTES) -> Written:
    """Write `model-0000X-of-0000Y.safetensors` and their index.

    A shard is closed before the tensor that would take it beyond `shard_bytes`. It is hashed while it is written, and
    the next tensor is read meanwhile.
    """
    shards: list[list[Entry]] = [[]]
    for entry in entries:
        if shards[-1] and sum(e.nbytes for e in shards[-1]) + entry.nbytes > shard_bytes:
            shards.append([])
        shards[-1].append(entry)
    weight_map: dict[str, str] = {}
    digests: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file_name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        by_name = {entry.name: entry for entry in shard}
        with tensor_file(folder / file_name, [(e.name, e.dtype, e.shape) for e in shard]) as file:
            with ahead(by_name[name].read() for name in file.order) as tensors:
                for name, tensor in zip(file.order, tensors, strict=True):
                    file.write(name, tensor)
            digests[file_name] = file.sha256
        weight_map |= dict.fromkeys(by_name, file_name)
    total = sum(entry.nbytes for shard in shards for entry in shard)
    write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))})
    return Written(total, digests)


def copy_files(source: Path, names: Sequence[Path], folder: Path) -> None:
    """Copy the source's other files (relative paths), but none under a name that the bundle uses itself."""
    for name in names:
        if name.as_posix() not in RESERVED:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, folder / name)


def bundle_config(source: Mapping[str, Any], staged: Iterable[Staged]) -> dict[str, Any]:
    """The source's config.json with our `quantization_config`: how every encoded matrix decodes."""
    modules = {s.name: s.layout.to_dict() for s in staged if s.layout is not None}
    quantization = {"quant_method": QUANT_METHOD, "format_version": FORMAT_VERSION, "modules": modules}
    return {**strict(source), "quantization_config": quantization}


def file_hashes(folder: Path, known: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of every file under `folder`, by relative path; `known`: SHA-256 that need not be taken."""
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder).as_posix()
        found[name] = {"size": path.stat().st_size, "sha256": known.get(name) or file_sha256(path)}
    return found
