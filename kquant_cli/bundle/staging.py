"""Finished matrices on their way into a bundle, kept one by one, so that an interrupted run goes on where it was.

The run's part folder (output_folder.py) has, for each finished matrix, `matrices/<n>.safetensors` and then the entry
`matrices/<n>.json`: name, layout, record, SHA-256 of the former, the sum of each tensor, and the SHA-256 of all that.
Neither waits for the disk: a pair that is damaged, that a machine that stopped left in part, or that is of another
shape than the plan's, is not believed, and counts as unfinished. What is damaged after that shows when it is read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from torch import Tensor

from kquant_cli.bundle.part_folder import open_part
from kquant_cli.encoded import EncodedMatrix, Layout, Record
from kquant_cli.errors import KQuantError
from kquant_cli.files.digests import file_sha256
from kquant_cli.files.json_object import read_object, write_json
from kquant_cli.files.safetensors_format import TensorInfo
from kquant_cli.files.safetensors_reader import read_header, read_tensor
from kquant_cli.files.safetensors_writer import tensor_file
from kquant_cli.files.tensor_sums import tensor_sum


@dataclass(frozen=True)
class Staged:
    """A finished matrix: where its tensors are (by suffix), its layout (None: it stays dense) and its record.

    `sums`: of the bytes of each tensor (files/tensor_sums.py).
    """

    name: str
    layout: Layout | None
    record: Record
    tensors: Mapping[str, TensorInfo]
    sums: Mapping[str, int] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors; 0 where it stays dense."""
        return sum(info.nbytes for info in self.tensors.values())

    def read(self, suffix: str) -> Tensor:
        """One of its tensors. Raises KQuantError when it cannot be read, or is not what was kept."""
        tensor = read_tensor(self.tensors[suffix])
        if tensor_sum(tensor) != self.sums[suffix]:
            raise KQuantError(
                f"{self.tensors[suffix].file} was damaged while the run went on: run the same command again, which "
                f"encodes this matrix anew"
            )
        return tensor

    def encoded(self) -> EncodedMatrix:
        """The matrix; not for one whose channel scale another stores, or that stays dense."""
        assert self.layout is not None
        tensors = {suffix: self.read(suffix) for suffix in self.tensors}
        return replace(EncodedMatrix.from_tensors(self.layout, tensors), record=self.record)


class Staging:
    """The finished matrices beside the future bundle."""

    def __init__(self, out: Path, owner: str) -> None:
        """Take up the unfinished work of `owner` on the bundle `out`; `discarded`: another's was thrown away."""
        self.folder, self.discarded = open_part(out, owner)
        (self.folder / "matrices").mkdir(exist_ok=True)

    def find(self, name: str, shape: tuple[int, int] | None = None) -> Staged | None:
        """The finished matrix of that name (and shape), if there is one.

        Raises KQuantError where the system cannot read it now: to encode it otherwise than before would be another run.
        """
        tensors, entry = self._files(name)
        if not entry.exists():
            return None
        try:
            found = _read(name, tensors, entry)
        except (OSError, KQuantError, LookupError, TypeError, ValueError, AttributeError) as error:
            cause = error if isinstance(error, OSError) else error.__cause__
            if isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError):
                raise KQuantError(
                    f"{cause.filename or entry} cannot be read ({cause.strerror or cause}); run the same command "
                    f"again, or remove {self.folder} to begin anew"
                ) from error
            return None
        return None if found and found.layout and shape not in (None, found.layout.shape) else found

    def save(self, name: str, layout: Layout | None, parts: Mapping[str, Tensor], record: Record) -> Staged:
        """Keep a matrix: its tensors by suffix, on the CPU; no `layout`: it stays dense, and there are none."""
        tensors, entry = self._files(name)
        digest, sums = None, {}
        if layout is not None:
            entries = [(suffix, part.dtype, tuple(part.shape)) for suffix, part in parts.items()]
            with tensor_file(tensors, entries, durable=False) as file:
                for suffix in file.order:
                    file.write(suffix, parts[suffix])
                    sums[suffix] = tensor_sum(parts[suffix])
                digest = file.sha256
        values = {
            "name": name,
            "layout": layout and layout.to_dict(),
            "record": asdict(record),
            "sha256": digest,
            "sums": sums,
        }
        write_json(entry, {**values, "entry_sha256": _digest(values)}, durable=False)
        return Staged(name, layout, record, read_header(tensors) if layout else {}, sums)

    def _files(self, name: str) -> tuple[Path, Path]:
        stem = self.folder / "matrices" / sha256(name.encode()).hexdigest()[:24]
        return stem.with_suffix(".safetensors"), stem.with_suffix(".json")


def _read(name: str, tensors: Path, entry: Path) -> Staged | None:
    """What the two files hold, if it is what was written for that name; None, or many an error, for anything else."""
    values = read_object(entry)
    if values.pop("entry_sha256") != _digest(values) or values["name"] != name:
        return None
    record = Record(**{**values["record"], **{key: tuple(values["record"][key]) for key in ("trace", "notes")}})
    if values["layout"] is None:
        return Staged(name, None, record, {})
    layout = Layout.from_dict(values["layout"])
    if file_sha256(tensors) != values["sha256"]:
        return None
    found = read_header(tensors)
    if {suffix: info.shape for suffix, info in found.items()} != layout.tensor_shapes():
        return None
    return Staged(name, layout, record, found, {suffix: values["sums"][suffix] for suffix in found})


def _digest(values: Mapping[str, Any]) -> str:
    """SHA-256 of an entry's content, written in one way."""
    return sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
