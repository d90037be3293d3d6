"""Safetensors files, checked by their header and read by ranges, so that one tensor at a time is in memory.

Why not by `safe_open`: of 2 GB it leaves 2018 MB resident, these reads 71; opened anew for every tensor it leaves 73,
but takes 15.9 s for 5000 small ones against 0.2, and a file cut under its map kills the process; its "pread" (0.8 on)
is as small and about as fast, but needs handles held open, and saves no code (scripts/bench_reading.py measures it).
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kquant_cli.errors import KQuantError, shortened
from kquant_cli.files.json_object import parse
from kquant_cli.files.plain_files import open_plain
from kquant_cli.files.safetensors_format import DTYPES, TensorInfo

LONGEST_HEADER = 100_000_000  # bytes; the limit of the safetensors library
MOST_TENSORS = 250_000  # of a file: the largest models have as many in all their files together
MOST_DIMENSIONS = 64
GIT_LFS_POINTER = b"version https://git-lfs"


def read_header(path: Path) -> dict[str, TensorInfo]:
    """The tensors of a safetensors file in the order of their data, after checking that the file is whole.

    Raises KQuantError, naming the file, when it is no safetensors file, truncated, too long, or inconsistent.
    """
    size, text = _header_text(path)
    infos = sorted(_parse(path, text), key=lambda info: (info.begin, info.end))
    end = 8 + len(text)
    for info in infos:
        if info.begin != end:
            raise _invalid(path, f"the data of tensor {info.name!r} begin at byte {info.begin} instead of {end}")
        end = info.end
    if size < end:
        raise _truncated(path, str(end), size)
    if size > end:
        raise _invalid(path, f"it has {size} bytes where its header describes {end}")
    return {info.name: info for info in infos}


def _header_text(path: Path) -> tuple[int, bytes]:
    """The size of the file and its header, unparsed."""
    try:
        with open_plain(path) as file:
            size = os.fstat(file.fileno()).st_size
            start = file.read(len(GIT_LFS_POINTER))
            if start == GIT_LFS_POINTER:
                raise KQuantError(f"{path} is a Git LFS pointer, not the weights: fetch the file with `git lfs pull`")
            if size < 8:
                raise _truncated(path, "at least 8", size)
            (length,) = struct.unpack("<Q", start[:8])
            if length > LONGEST_HEADER:
                raise _invalid(path, f"its header would be {length} bytes long, and at most {LONGEST_HEADER} are read")
            if 8 + length > size:
                raise _truncated(path, f"more than {8 + length}", size)
            file.seek(8)
            text = file.read(length)
            if text is None or len(text) < length:
                raise _truncated(path, f"more than {8 + length}", size)
            return size, text
    except OSError as error:
        raise KQuantError(f"cannot read {path}: {error.strerror or error}") from error


def _parse(path: Path, text: bytes) -> Iterator[TensorInfo]:
    """The header's entries, each checked for itself."""
    if text.count(b'"data_offsets"') > MOST_TENSORS or text.count(b"{") > 2 * MOST_TENSORS:
        raise _invalid(path, f"its header has more than {MOST_TENSORS} tensors, the most that are read of one file")
    try:
        header = parse(text, _unique)
    except ValueError as error:
        raise _invalid(path, f"its header is not JSON ({error})") from error
    if not isinstance(header, dict):
        raise _invalid(path, "its header is not a JSON object")
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if not _is_utf8(name):
            raise _invalid(path, f"the name of tensor {name!r} has half a character")
        if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
            raise _invalid(path, f"tensor {name!r} lacks its dtype, shape or data_offsets")
        if not isinstance(entry["dtype"], str) or entry["dtype"] not in DTYPES:
            raise KQuantError(
                f"{path}: tensor {name!r} has the data type {shortened(entry['dtype'])}, which kquant does not read; "
                f"convert the checkpoint to float32, float16 or bfloat16"
            )
        dtype, shape, offsets = DTYPES[entry["dtype"]], entry["shape"], entry["data_offsets"]
        if not (_is_sizes(shape) and _is_sizes(offsets) and len(offsets) == 2):
            raise _invalid(
                path, f"tensor {name!r} has the shape {shortened(shape)} and the data_offsets {shortened(offsets)}"
            )
        if len(shape) > MOST_DIMENSIONS or math.prod(max(1, n) for n in shape) >= 1 << 63:
            raise _invalid(
                path, f"tensor {name!r} has the shape {shortened(shape)}, beyond {MOST_DIMENSIONS} dimensions or 2^63"
            )
        if offsets[1] - offsets[0] != math.prod(shape) * dtype.itemsize:
            raise _invalid(
                path, f"tensor {name!r} of shape {shortened(shape)} and type {entry['dtype']} spans bytes {offsets}"
            )
        begin = 8 + len(text)
        yield TensorInfo(name, dtype, tuple(shape), path, begin + offsets[0], begin + offsets[1])


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; ValueError when it names a key twice, since readers differ in which of the two counts."""
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name occurs twice")
    return result


def _is_sizes(value: object) -> bool:
    """Whether `value` is a list of sizes or offsets; beyond 2^48 no file system goes, and torch's own sums overflow."""
    return isinstance(value, list) and all(type(number) is int and 0 <= number < 1 << 48 for number in value)


def _truncated(path: Path, expected: str, size: int) -> KQuantError:
    return KQuantError(f"{path} is truncated: it should have {expected} bytes and has {size}; download it again")


def _invalid(path: Path, why: str) -> KQuantError:
    return KQuantError(f"{path} is not a valid safetensors file: {why}; download it again or save it anew")


def read_tensor(info: TensorInfo, *, pinned: bool = False) -> Tensor:
    """The tensor `info` points to, in memory of its own; reads exactly its bytes.

    `pinned`: into memory that a GPU can copy from while others compute; needs CUDA.

    Raises KQuantError, naming file and tensor, when the bytes cannot be read (the file is gone, or was cut since).
    """
    data = torch.empty(info.nbytes, dtype=torch.uint8, pin_memory=pinned)
    with _open_at(info) as file:
        _fill(file, data.numpy().data, info)
    return data.view(info.dtype).reshape(info.shape)


def read_chunks(info: TensorInfo, size: int = 1 << 24) -> Iterator[bytearray]:
    """The bytes of a tensor, `size` at a time (the last chunk may be shorter). Raises as `read_tensor` does."""
    with _open_at(info) as file:
        for begin in range(info.begin, info.end, size):
            chunk = bytearray(min(size, info.end - begin))
            _fill(file, memoryview(chunk), info)
            yield chunk


@contextmanager
def _open_at(info: TensorInfo) -> Iterator[FileIO]:
    try:
        with open_plain(info.file) as file:
            file.seek(info.begin)
            yield file
    except OSError as error:
        raise KQuantError(f"cannot read tensor {info.name!r} from {info.file}: {error.strerror or error}") from error


def _fill(file: FileIO, view: memoryview, info: TensorInfo) -> None:
    """Read until `view` is full: one read gives less than asked beyond 2 GB, or on a signal."""
    while view:
        count = file.readinto(view)
        if not count:
            raise KQuantError(
                f"cannot read tensor {info.name!r} from {info.file}: the file ends before byte {info.end}; "
                f"download it again"
            )
        view = view[count:]
