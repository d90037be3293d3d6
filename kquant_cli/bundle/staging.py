"""Finished matrices on their way into a bundle: durable one by one, so that an interrupted run goes on where it was.

`<bundle>.part/` has `state.json` with the run's fingerprint and, for each finished matrix, `matrices/<n>.safetensors`
and then `matrices/<n>.json` (name, layout, record), which says that the former is complete. Work of another fingerprint
is thrown away. The bundle itself is written to `<bundle>.part/bundle` and renamed when complete.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

from kquant_cli.bundle.format import read_json, write_json
from kquant_cli.encoded import EncodedMatrix, Layout, Record
from kquant_cli.errors import KQuantError
from kquant_cli.tensorfile import TensorFileWriter, TensorInfo, read_header


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
    """The folder beside the future bundle."""

    def __init__(self, out: Path, fingerprint: str) -> None:
        """Open `<out>.part` for the run of that fingerprint; `discarded`: other work was there and thrown away."""
        self.folder = out.with_name(out.name + ".part")
        state, self.discarded = self.folder / "state.json", False
        if self.folder.exists() and (not state.exists() or _fingerprint(state) != fingerprint):
            shutil.rmtree(self.folder)
            self.discarded = True
        (self.folder / "matrices").mkdir(parents=True, exist_ok=True)
        if not state.exists():
            write_json(state, {"fingerprint": fingerprint})

    def find(self, name: str) -> Staged | None:
        """The finished matrix of that name, if there is one."""
        tensors, entry = self._files(name)
        if not entry.exists():
            return None
        values = read_json(entry)
        record = Record(**{**values["record"], "trace": tuple(values["record"]["trace"])})
        layout = Layout.from_dict(values["layout"]) if values["layout"] else None
        return Staged(name, layout, record, read_header(tensors) if layout else {})

    def save(self, name: str, encoded: EncodedMatrix | None, record: Record) -> Staged:
        """Make a matrix durable; `encoded` None: it stays dense."""
        tensors, entry = self._files(name)
        if encoded is not None:
            parts = encoded.to_tensors()
            part = tensors.with_suffix(".tmp")
            with TensorFileWriter(part, [(k, t.dtype, tuple(t.shape)) for k, t in parts.items()]) as file:
                for suffix, tensor in parts.items():
                    file.write(suffix, tensor)
            part.replace(tensors)
        layout = encoded.layout if encoded is not None else None
        part = entry.with_suffix(".json.tmp")
        write_json(part, {"name": name, "layout": layout and layout.to_dict(), "record": asdict(record)})
        part.replace(entry)
        return Staged(name, layout, record, read_header(tensors) if layout else {})

    def _files(self, name: str) -> tuple[Path, Path]:
        stem = self.folder / "matrices" / sha256(name.encode()).hexdigest()[:24]
        return stem.with_suffix(".safetensors"), stem.with_suffix(".json")

    def fresh(self) -> Path:
        """An empty folder to write the bundle into."""
        folder = self.folder / "bundle"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        return folder

    def finish(self, out: Path) -> None:
        """Rename the written bundle to its place; what is there now gives way."""
        old = out.with_name(out.name + ".old")
        if out.exists():
            shutil.rmtree(old, ignore_errors=True)
            out.rename(old)
        (self.folder / "bundle").rename(out)
        shutil.rmtree(self.folder)
        shutil.rmtree(old, ignore_errors=True)


def _fingerprint(state: Path) -> object:
    try:
        return read_json(state).get("fingerprint")
    except KQuantError:
        return None
