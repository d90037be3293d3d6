"""Finished matrices on their way into a bundle, kept one by one, so that an interrupted run goes on where it was.

The run's part folder (output_folder.py) has, for each finished matrix, `matrices/<n>.safetensors` and then the entry
`matrices/<n>.json` (name, layout, record, SHA-256 of the former). Neither waits for the disk: a pair that is damaged,
or that a machine that stopped left in part, is not of that SHA-256, and counts as unfinished.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path

from torch import Tensor

from kquant_cli.bundle.part_folder import open_part
from kquant_cli.encoded import EncodedMatrix, Layout, Record
from kquant_cli.errors import KQuantError
from kquant_cli.files.digests import file_sha256
from kquant_cli.files.json_object import read_object, write_json
from kquant_cli.files.safetensors_format import TensorInfo
from kquant_cli.files.safetensors_reader import read_header, read_tensor
from kquant_cli.files.safetensors_writer import tensor_file


@dataclass(frozen=True)
class Staged:
    """A finished matrix: where its tensors are (by suffix), its layout (None: it stays dense) and its record."""

    name: str
    layout: Layout | None
    record: Record
    tensors: Mapping[str, TensorInfo]

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors; 0 where it stays dense."""
        return sum(info.nbytes for info in self.tensors.values())

    def encoded(self) -> EncodedMatrix:
        """The matrix; not for one whose channel scale another stores, or that stays dense."""
        assert self.layout is not None
        tensors = {suffix: read_tensor(info) for suffix, info in self.tensors.items()}
        return replace(EncodedMatrix.from_tensors(self.layout, tensors), record=self.record)


class Staging:
    """The finished matrices beside the future bundle."""

    def __init__(self, out: Path, owner: str) -> None:
        """Take up the unfinished work of `owner` on the bundle `out`; `discarded`: another's was thrown away."""
        self.folder, self.discarded = open_part(out, owner)
        (self.folder / "matrices").mkdir(exist_ok=True)

    def find(self, name: str) -> Staged | None:
        """The finished matrix of that name, if there is one."""
        tensors, entry = self._files(name)
        if not entry.exists():
            return None
        try:
            values = read_object(entry)
            record = Record(**{**values["record"], **{key: tuple(values["record"][key]) for key in ("trace", "notes")}})
            layout = Layout.from_dict(values["layout"]) if values["layout"] else None
            if layout and file_sha256(tensors) != values["sha256"]:
                return None
            return Staged(name, layout, record, read_header(tensors) if layout else {})
        except (OSError, KQuantError, KeyError, TypeError, ValueError):
            return None

    def save(self, name: str, layout: Layout | None, parts: Mapping[str, Tensor], record: Record) -> Staged:
        """Keep a matrix: its tensors by suffix, on the CPU; no `layout`: it stays dense, and there are none."""
        tensors, entry = self._files(name)
        digest = None
        if layout is not None:
            entries = [(suffix, part.dtype, tuple(part.shape)) for suffix, part in parts.items()]
            with tensor_file(tensors, entries, durable=False) as file:
                for suffix in file.order:
                    file.write(suffix, parts[suffix])
                digest = file.sha256
        values = {"name": name, "layout": layout and layout.to_dict(), "record": asdict(record), "sha256": digest}
        write_json(entry, values, durable=False)
        return Staged(name, layout, record, read_header(tensors) if layout else {})

    def _files(self, name: str) -> tuple[Path, Path]:
        stem = self.folder / "matrices" / sha256(name.encode()).hexdigest()[:24]
        return stem.with_suffix(".safetensors"), stem.with_suffix(".json")
