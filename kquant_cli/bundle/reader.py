"""A bundle, opened only after it has been found whole: format, files, tensors and, unless told otherwise, checksums."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kquant_cli.bundle.faults import refuse
from kquant_cli.bundle.format import CONFIG, MANIFEST, QUANT_METHOD, is_bundle, read_json
from kquant_cli.bundle.validation import read_layouts, require_tensors, require_version
from kquant_cli.bundle.whole import file_faults, listed_files, listing_faults, read_index, read_shards, stray_faults
from kquant_cli.encoded import EncodedMatrix, Layout
from kquant_cli.errors import KQuantError
from kquant_cli.files.model_sizes import oversized
from kquant_cli.files.safetensors_format import TensorInfo
from kquant_cli.files.safetensors_reader import read_tensor


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

    Without it names, sizes, index, shapes and types are compared all the same, and what lies beside is looked at.

    Raises
    ------
    KQuantError
        It is no bundle, is of a newer format, or a file or tensor is missing, truncated, changed or of another shape,
        or there are other weights in the folder.
    """
    path = Path(path)
    config = read_bundle_config(path)
    manifest = read_json(path / MANIFEST)
    files, faults = listed_files(path, manifest)
    refuse(faults)
    refuse(file_faults(path, files, digests=verify))
    index = read_index(path)
    shards = set(index.values())
    refuse(listing_faults(path, files, shards))
    refuse(stray_faults(path, files, shards))
    layouts = read_layouts(path, config["quantization_config"])
    infos, faults = read_shards(path, index)
    refuse(faults)
    require_tensors(path, infos, layouts)
    return Bundle(path, config, manifest, infos, layouts)


def read_bundle_config(path: Path) -> dict[str, Any]:
    """The config.json of the bundle in the folder `path`; KQuantError unless it is one of a format that is read."""
    if not is_bundle(path):
        raise KQuantError(
            f"{path}: is not a kquant bundle (no {CONFIG} with quant_method {QUANT_METHOD!r}); "
            f"give the folder that `kquant compress` wrote"
        )
    config = read_json(path / CONFIG)
    if why := oversized(config):
        raise KQuantError(f"{path / CONFIG}: {why}; the bundle is damaged, make it again")
    require_version(config["quantization_config"].get("format_version"), path)
    return config


def newest_bundle(folder: Path) -> Path:
    """The bundle under `folder` whose manifest was written last; KQuantError when there is none."""
    found = [path.parent for path in folder.glob(f"*/{MANIFEST}") if is_bundle(path.parent)]
    if not found:
        raise KQuantError(f"there is no bundle under {folder}/; name one, or make one with `kquant compress MODEL`")
    return max(found, key=lambda path: ((path / MANIFEST).stat().st_mtime_ns, path.name))
