"""Everything that can be said of a bundle without its source: all faults, not only the first, a tensor in memory.

The checks of files, index, layouts and tensors are those of the reader (whole.py, validation.py). Here are the others,
which read what is in the tensors: codes below their number of levels, finite numbers, what the manifest records; and,
if asked, every matrix decoded.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kquant_cli.bundle.faults import Fault
from kquant_cli.bundle.format import CONFIG, INDEX, MANIFEST, RESULTS, RUN, is_bundle, read_json
from kquant_cli.bundle.reader import Bundle, read_bundle_config
from kquant_cli.bundle.validation import find_layouts, tensor_faults
from kquant_cli.bundle.whole import (
    Facts,
    file_faults,
    is_weights,
    listed_files,
    listing_faults,
    read_index,
    read_shards,
    stray_faults,
)
from kquant_cli.encoded import Layout
from kquant_cli.errors import KQuantError
from kquant_cli.files.safetensors_format import TensorInfo
from kquant_cli.files.safetensors_reader import read_chunks, read_tensor
from kquant_cli.packing import count_invalid

HOUSEHOLD = ("README.md", ".gitattributes", ".gitignore")  # what the hub and git put beside a model

Told = Callable[[str, int, int], None]  # what is looked at; how much of how much


@dataclass(frozen=True)
class Verification:
    """The faults, how much was looked at, and the bundle, None where it is too damaged for more to be asked of it."""

    faults: tuple[Fault, ...]
    files: int
    tensors: int
    matrices: int
    bundle: Bundle | None


def verify_bundle(path: Path, *, deep: bool = False, told: Told = lambda _what, _done, _all: None) -> Verification:
    """Look at everything in the bundle of the folder `path`; `deep`: decode every matrix, too.

    Raises
    ------
    KQuantError
        It cannot be checked: it is no bundle, of a newer format, or `save_pretrained` wrote it, without a manifest.
    """
    config, faults = _config(path)
    try:
        manifest = read_json(path / MANIFEST)
    except KQuantError as error:
        return Verification((*faults, Fault(MANIFEST, str(error))), 0, 0, 0, None)
    files, more = listed_files(path, manifest)
    faults += [*more, *_files(path, files, told)]
    try:
        index = read_index(path)
    except KQuantError as error:
        return Verification((*faults, Fault(INDEX, str(error)), *_unknown(path, files, ())), len(files), 0, 0, None)
    shards = set(index.values())
    faults += [*listing_faults(path, files, shards), *_unknown(path, files, shards)]
    layouts, more = find_layouts(path, config.get("quantization_config") or {})
    faults += more
    infos, more = read_shards(path, index)
    faults += [*more, *tensor_faults(path, infos, layouts)]
    bundle = Bundle(path, config, manifest, infos, layouts)
    readable = {name: layout for name, layout in layouts.items() if _complete(layout, name, infos, layouts)}
    faults += [*record_faults(bundle), *tied_faults(bundle), *_contents(bundle, readable, told)]
    if deep:
        faults += _decoded(bundle, readable, told)
    return Verification(tuple(faults), len(files), len(infos), len(layouts), bundle)


def record_faults(bundle: Bundle) -> Iterator[Fault]:
    """Where the manifest does not say of the matrices and of their sizes what the other files do."""
    where, matrices = bundle.path / MANIFEST, bundle.manifest.get("matrices")
    if not isinstance(matrices, dict):
        yield Fault(MANIFEST, f"{where}: says nothing of the matrices; the bundle is damaged, make it again")
        return
    for name in sorted(set(matrices) | set(bundle.layouts)):
        if why := _record_fault(bundle, name, matrices.get(name)):
            yield Fault(name, f"{where}: {why}")
    totals = bundle.manifest.get("totals")
    expected = {"bytes": sum(info.nbytes for info in bundle.infos.values())}
    expected["encoded_bytes"] = sum(_nbytes(bundle, name) for name in bundle.layouts)
    expected["encoded_weights"] = sum(math.prod(layout.shape) for layout in bundle.layouts.values())
    for key, number in expected.items():
        found = totals.get(key) if isinstance(totals, dict) else None
        if found != number:
            yield Fault(MANIFEST, f"{where}: says that totals.{key} is {found!r}, where the tensors have {number}")


def tied_faults(bundle: Bundle) -> Iterator[Fault]:
    """Tied names that are stored all the same, or are tied to one that is not."""
    tied = bundle.manifest.get("tied", {})
    stored = {name for name, _, _ in bundle.shapes()}
    for name, kept in tied.items() if isinstance(tied, dict) else ():
        if name in stored or kept not in stored:
            what = "which is stored itself" if name in stored else "which is not stored"
            yield Fault(name, f"{bundle.path / MANIFEST}: ties {name!r} to {kept!r}, {what}; make the bundle again")


def _config(path: Path) -> tuple[Mapping[str, Any], list[Fault]]:
    """The config, or {} with the fault where a bundle's is damaged."""
    if not is_bundle(path) and (path / MANIFEST).is_file():
        try:
            read_json(path / CONFIG)
            why = f"{path / CONFIG}: has no quant_method of kquant's; the bundle is damaged, make it again"
        except KQuantError as error:
            why = str(error)
        return {}, [Fault(CONFIG, why)]
    config = read_bundle_config(path)
    if config["quantization_config"].get("resaved") is True and not (path / MANIFEST).exists():
        raise KQuantError(
            f"{path}: was written by save_pretrained, which writes no {MANIFEST} that files could be compared with"
        )
    return config, []


def _files(path: Path, files: Facts, told: Told) -> list[Fault]:
    sizes = [facts["size"] if type(facts["size"]) is int else 0 for facts in files.values()]
    done, left = 0, iter(sizes)

    def after(name: str) -> None:
        nonlocal done
        done += next(left)
        told("bytes of files", done, sum(sizes))

    return list(file_faults(path, files, digests=True, told=after))


def _unknown(path: Path, files: Facts, shards: Any) -> Iterator[Fault]:
    """Files that are neither listed nor of those that may lie beside; hidden folders are passed over."""
    yield from stray_faults(path, files, shards)
    known = {*files, *shards, MANIFEST, RUN, *HOUSEHOLD}
    for parent, folders, names in os.walk(path):
        here = Path(parent).relative_to(path)
        links = [name for name in folders if (Path(parent) / name).is_symlink()]
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in links)
        for name in sorted([*names, *links]):
            file = (here / name).as_posix()
            own = file in known or (here == Path(RESULTS) and name.endswith(".json"))
            if not own and not (here == Path() and is_weights(name)):
                yield Fault(file, f"{path / file}: is no part of the bundle, which does not list it; move it elsewhere")


def _complete(layout: Layout, name: str, infos: Mapping[str, TensorInfo], layouts: Mapping[str, Layout]) -> bool:
    """Whether all tensors are there, as they should be, that the matrix is decoded from."""
    needed = {f"{name}.{suffix}": shape for suffix, shape in layout.tensor_shapes().items()}
    if layout.channel_scale_from is not None:
        needed[f"{layout.channel_scale_from}.weight_channel_scale"] = (layout.shape[1],)
    return all(
        tensor in infos
        and infos[tensor].shape == shape
        and (infos[tensor].dtype == torch.uint8) == tensor.endswith(".weight_codes")
        for tensor, shape in needed.items()
    )


def _record_fault(bundle: Bundle, name: str, record: Any) -> str:
    layout = bundle.layouts.get(name)
    if not isinstance(record, dict):
        return f"says nothing of the matrix {name!r}, which is encoded; make the bundle again"
    error = record.get("relative_error")
    if not isinstance(error, int | float) or not 0 <= error < math.inf:
        return f"records the relative error {error!r} of {name!r}, expected a number from 0 up; make the bundle again"
    kept = record.get("outcome") == "kept"
    if layout is None or kept:
        if layout is None and kept and f"{name}.weight" in bundle.infos:
            return ""
        return f"records {name!r} as {record.get('outcome')!r}, which the tensors are not; make the bundle again"
    expected = {"shape": list(layout.shape), "levels": layout.levels, "bytes": _nbytes(bundle, name)}
    for key, value in expected.items():
        if record.get(key) != value:
            return f"records {key} {record.get(key)!r} of {name!r}, where it has {value!r}; make the bundle again"
    return ""


def _nbytes(bundle: Bundle, name: str) -> int:
    infos = (bundle.infos.get(f"{name}.{suffix}") for suffix in bundle.layouts[name].tensor_shapes())
    return sum(info.nbytes for info in infos if info is not None)


def _contents(bundle: Bundle, layouts: Mapping[str, Layout], told: Told) -> Iterator[Fault]:
    """Codes beyond the codebook, numbers that are not finite, channel scales of 0."""
    done, total = 0, sum(info.nbytes for info in bundle.infos.values())
    for name, info in bundle.infos.items():
        module, _, suffix = name.rpartition(".")
        try:
            if suffix == "weight_codes" and module in layouts:
                layout = layouts[module]
                if count := count_invalid(read_tensor(info), layout.levels, layout.shape[1]):
                    why = f"has {count} words of codes beyond the {layout.levels} levels of its codebook"
                    yield Fault(name, f"{bundle.path}: {name!r} {why}; the bundle is damaged, make it again")
            elif info.dtype.is_floating_point:
                numbers, finite, zero = _look(info)
                may_be_infinite = not suffix.startswith("weight")  # as when it was compressed
                if not (finite or (numbers and may_be_infinite)):
                    why = "has entries that are not finite"
                    yield Fault(name, f"{bundle.path}: {name!r} {why}; the bundle is damaged, make it again")
                if zero and suffix == "weight_channel_scale" and module in layouts:
                    why = "has entries of 0, by which decoding divides"
                    yield Fault(name, f"{bundle.path}: {name!r} {why}; the bundle is damaged, make it again")
        except KQuantError as error:
            yield Fault(name, str(error))
        done += info.nbytes
        told("bytes of tensors", done, total)


def _look(info: TensorInfo) -> tuple[bool, bool, bool]:
    """Whether no entry is NaN, whether all are finite, and whether one is 0."""
    numbers, finite, zero = True, True, False
    for chunk in read_chunks(info):
        values = torch.frombuffer(chunk, dtype=info.dtype)
        extremes = torch.stack(torch.aminmax(values.float() if values.element_size() == 1 else values))
        numbers &= not bool(extremes.isnan().any())
        finite &= bool(extremes.isfinite().all())
        zero |= not bool(values.all())
    return numbers, finite, zero


def _decoded(bundle: Bundle, layouts: Mapping[str, Layout], told: Told) -> Iterator[Fault]:
    """Matrices that decode to what is no weight, or not to what the recorded error is of."""
    for number, name in enumerate(layouts, start=1):
        why = ""
        try:
            weight = bundle.encoded(name).decode(torch.float32)
            if not bool(torch.isfinite(weight).all()):
                why = "decodes to entries that are not finite"
            elif not bool(weight.any()) and 0 < _recorded_error(bundle, name) < 0.999:
                why = (
                    f"decodes to zeros, which the recorded relative error {_recorded_error(bundle, name):.4f} is not of"
                )
        except (KQuantError, RuntimeError, ValueError) as error:
            why = f"cannot be decoded ({error})"
        if why:
            yield Fault(name, f"{bundle.path}: matrix {name!r} {why}; the bundle is damaged, make it again")
        told("matrices decoded", number, len(layouts))


def _recorded_error(bundle: Bundle, name: str) -> float:
    matrices = bundle.manifest.get("matrices")
    record = matrices.get(name) if isinstance(matrices, dict) else None
    error = record.get("relative_error") if isinstance(record, dict) else None
    return float(error) if isinstance(error, int | float) else math.nan
