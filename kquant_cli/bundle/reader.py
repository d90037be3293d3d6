"""A bundle, opened only after it has been found whole: format, files, tensors and, unless told otherwise, checksums."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kquant_cli.bundle.format import (
    CONFIG,
    INDEX,
    MANIFEST,
    QUANT_METHOD,
    is_bundle,
    read_json,
)
from kquant_cli.bundle.validation import read_layouts, require_tensors, require_version
from kquant_cli.encoded import EncodedMatrix, Layout
from kquant_cli.errors import KQuantError
from kquant_cli.files.digests import file_sha256
from kquant_cli.files.safe_names import stays_inside
from kquant_cli.files.safetensors_format import TensorInfo
from kquant_cli.files.safetensors_index import IndexRefusals, weight_map
from kquant_cli.files.safetensors_reader import read_header, read_tensor

NO_SHARDS = "{path}: weight_map names no shards; the bundle is damaged, make it again"
INDEX_REFUSALS = IndexRefusals(
    no_map=NO_SHARDS,
    no_file=NO_SHARDS,
    outside="{path}: names {file}, expected a file of the bundle's folder",
)


@dataclass(frozen=True)
class Bundle:
    """A whole bundle. `infos`: every stored tensor; `layouts`: every encoded matrix by its module name."""

    path: Path
    config: Mapping[str, Any]
    manifest: Mapping[str, Any]
    infos: Mapping[str, TensorInfo]
    layouts: Mapping[str, Layout]

    def encoded(self, name: str) -> EncodedMatrix:
        """The encoded matrix of that module name; KQuantError when its tensors do not fit its layout."""
        layout = self.layouts[name]
        tensors = {suffix: read_tensor(self.infos[f"{name}.{suffix}"]) for suffix in layout.tensor_shapes()}
        if layout.channel_scale_from is not None:
            shared = "weight_channel_scale"
            tensors[shared] = read_tensor(self.infos[f"{layout.channel_scale_from}.{shared}"])
        try:
            return EncodedMatrix.from_tensors(layout, tensors)
        except ValueError as error:
            raise KQuantError(f"{self.path}: matrix {name!r}: {error}; the bundle is damaged, make it again") from error

    def weight(self, name: str, dtype: torch.dtype | None = None) -> torch.Tensor:
        """The decoded weight as the source stores it, in `dtype` or the source's own."""
        encoded = self.encoded(name)
        weight = encoded.decode(dtype or getattr(torch, encoded.layout.dtype))
        return (weight.T if encoded.layout.transposed else weight).contiguous()

    def shapes(self) -> Iterator[tuple[str, torch.dtype, tuple[int, ...]]]:
        """Name, dtype and shape of every tensor of the source, in the bundle's order."""
        encoded = set()
        for name, info in self.infos.items():
            module = self._module(name)
            if module is None:
                yield name, info.dtype, info.shape
            elif module not in encoded:
                encoded.add(module)
                layout = self.layouts[module]
                shape = layout.shape[::-1] if layout.transposed else layout.shape
                yield f"{module}.weight", getattr(torch, layout.dtype), shape

    def tensors(self, dtype: torch.dtype | None = None) -> Iterator[tuple[str, torch.Tensor]]:
        """The source's tensors one at a time, encoded ones decoded; floating ones in `dtype` if it is given."""
        for name, stored, _ in self.shapes():
            yield name, self.tensor(name, dtype if dtype and stored.is_floating_point else None)

    def tensor(self, name: str, dtype: torch.dtype | None = None) -> torch.Tensor:
        """One tensor of the source by its name there."""
        module = name.removesuffix(".weight")
        if name not in self.infos and module in self.layouts:
            return self.weight(module, dtype)
        tensor = read_tensor(self.infos[name])
        return tensor.to(dtype) if dtype else tensor

    def _module(self, name: str) -> str | None:
        module, _, suffix = name.rpartition(".")
        return module if module in self.layouts and suffix in self.layouts[module].tensor_shapes() else None


def open_bundle(path: Path | str, *, verify: bool = True) -> Bundle:
    """Open the bundle in the folder `path`; `verify` compares every file with its SHA-256.

    Raises
    ------
    KQuantError
        It is no bundle, is of a newer format, or a file or tensor is missing, truncated, changed or of another shape.
    """
    path = Path(path)
    if not is_bundle(path):
        raise KQuantError(
            f"{path}: is not a kquant bundle (no {CONFIG} with quant_method {QUANT_METHOD!r}); "
            f"give the folder that `kquant compress` wrote"
        )
    config = read_json(path / CONFIG)
    quantization = config["quantization_config"]
    require_version(quantization.get("format_version"), path)
    manifest = read_json(path / MANIFEST)
    files = _files(path, manifest)
    _check_files(path, files, verify=verify)
    index = weight_map(
        read_json(path / INDEX), INDEX_REFUSALS, path=path / INDEX, ending=".safetensors", subfolders=False
    )
    for name in sorted({CONFIG, INDEX, *index.values()} - set(files)):
        raise KQuantError(f"{path / MANIFEST}: files does not list {name!r}; the bundle is damaged, make it again")
    layouts = read_layouts(path, quantization)
    return Bundle(path, config, manifest, _infos(path, index, layouts), layouts)


def newest_bundle(folder: Path) -> Path:
    """The bundle under `folder` whose manifest was written last; KQuantError when there is none."""
    found = [path.parent for path in folder.glob(f"*/{MANIFEST}") if is_bundle(path.parent)]
    if not found:
        raise KQuantError(f"there is no bundle under {folder}/; name one, or make one with `kquant compress MODEL`")
    return max(found, key=lambda path: ((path / MANIFEST).stat().st_mtime_ns, path.name))


def _files(path: Path, manifest: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of every file of the bundle, as the manifest says."""
    files = manifest.get("files")
    if not isinstance(files, dict):
        raise KQuantError(f"{path / MANIFEST}: has no list of files; the bundle is damaged, make it again")
    for name, facts in files.items():
        if not isinstance(facts, dict) or not {"size", "sha256"} <= facts.keys():
            raise KQuantError(
                f"{path / MANIFEST}: lacks size or sha256 of {name!r} in files; the bundle is damaged, make it again"
            )
        if not stays_inside(name):
            raise KQuantError(
                f"{path / MANIFEST}: names {name!r} in files, which is outside the bundle; it is damaged, make it again"
            )
    return files


def _check_files(path: Path, files: Mapping[str, Mapping[str, Any]], *, verify: bool) -> None:
    for name, facts in files.items():
        file = path / name
        if not file.is_file():
            raise KQuantError(f"{file}: is missing from the bundle; copy the whole folder, or make it again")
        if file.stat().st_size != facts["size"]:
            raise KQuantError(
                f"{file}: has {file.stat().st_size} bytes, expected {facts['size']}; it was truncated or changed, "
                f"copy it again"
            )
        if verify and file_sha256(file) != facts["sha256"]:
            raise KQuantError(f"{file}: its SHA-256 is not the one in {MANIFEST}; it was changed, copy it again")


def _infos(path: Path, index: Mapping[str, str], layouts: Mapping[str, Layout]) -> dict[str, TensorInfo]:
    """Every tensor of the shards, after comparing them with the index and the layouts."""
    infos: dict[str, TensorInfo] = {}
    for shard in sorted(set(index.values())):
        infos |= read_header(path / shard)
    for name in sorted(set(index) ^ set(infos)):
        where = "has no tensor" if name in index else "does not name the stored tensor"
        raise KQuantError(f"{path / INDEX}: the bundle {where} {name!r}; it is damaged, make it again")
    require_tensors(path, infos, layouts)
    return infos
