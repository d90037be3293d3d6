"""Finished matrices on their way into a bundle: durable one by one, so that an interrupted run goes on where it was.

The run's part folder (output_folder.py) has, for each finished matrix, `matrices/<n>.safetensors` and then the entry
`matrices/<n>.json` (name, layout, record), which says that the former is complete. A damaged pair counts as unfinished.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

from kquant_cli.bundle.output_folder import open_part
from kquant_cli.encoded import EncodedMatrix, Layout, Record
from kquant_cli.errors import KQuantError
from kquant_cli.files.json_object import read_object, write_json
from kquant_cli.files.safetensors_format import TensorInfo
from kquant_cli.files.safetensors_reader import read_header
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
            record = Record(**{**values["record"], "trace": tuple(values["record"]["trace"])})
            layout = Layout.from_dict(values["layout"]) if values["layout"] else None
            return Staged(name, layout, record, read_header(tensors) if layout else {})
        except (KQuantError, KeyError, TypeError, ValueError):
            return None

    def save(self, name: str, encoded: EncodedMatrix | None, record: Record) -> Staged:
        """Make a matrix durable; `encoded` None: it stays dense."""
        tensors, entry = self._files(name)
        if encoded is not None:
            parts = encoded.to_tensors()
            with tensor_file(tensors, [(k, t.dtype, tuple(t.shape)) for k, t in parts.items()]) as file:
                for suffix, tensor in parts.items():
                    file.write(suffix, tensor)
        layout = encoded.layout if encoded is not None else None
        write_json(entry, {"name": name, "layout": layout and layout.to_dict(), "record": asdict(record)})
        return Staged(name, layout, record, read_header(tensors) if layout else {})

    def _files(self, name: str) -> tuple[Path, Path]:
        stem = self.folder / "matrices" / sha256(name.encode()).hexdigest()[:24]
        return stem.with_suffix(".safetensors"), stem.with_suffix(".json")
