"""Whether the files of a bundle are those that its manifest and its index name, and no others that would be loaded."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from kquant_cli.bundle.faults import Fault
from kquant_cli.bundle.format import CONFIG, INDEX, MANIFEST, read_json
from kquant_cli.errors import KQuantError
from kquant_cli.files.digests import file_sha256
from kquant_cli.files.safe_names import leads_outside, stays_inside
from kquant_cli.files.safetensors_format import TensorInfo
from kquant_cli.files.safetensors_index import IndexRefusals, weight_map
from kquant_cli.files.safetensors_reader import read_header

NO_SHARDS = "{path}: weight_map names no shards; the bundle is damaged, make it again"
INDEX_REFUSALS = IndexRefusals(
    no_map=NO_SHARDS,
    no_file=NO_SHARDS,
    outside="{path}: names {file}, expected a file of the bundle's folder",
)
PREFERRED = ("model.safetensors", "adapter_config.json")  # what transformers loads in place of an index
WEIGHTS = (
    *("*.safetensors", "*.safetensors.index.json", "*.bin", "*.bin.index.json", "*.pt", "*.pth", "*.ckpt*"),
    *("*.h5", "*.msgpack", "*.gguf", "adapter_*"),
)

Facts = Mapping[str, Mapping[str, Any]]


def listed_files(path: Path, manifest: Mapping[str, Any]) -> tuple[dict[str, dict[str, Any]], list[Fault]]:
    """Size and SHA-256 by the name of each file that the manifest lists as it should, and what is wrong with others."""
    files = manifest.get("files")
    if not isinstance(files, dict):
        why = f"{path / MANIFEST}: has no list of files; the bundle is damaged, make it again"
        return {}, [Fault(MANIFEST, why)]
    listed, faults = {}, []
    for name, facts in files.items():
        if not isinstance(facts, dict) or not {"size", "sha256"} <= facts.keys():
            why = f"lacks size or sha256 of {name!r} in files; the bundle is damaged, make it again"
        elif not stays_inside(name):
            why = f"names {name!r} in files, which is outside the bundle; it is damaged, make it again"
        else:
            listed[name] = facts
            continue
        faults.append(Fault(MANIFEST, f"{path / MANIFEST}: {why}"))
    return listed, faults


def file_faults(
    path: Path, files: Facts, *, digests: bool, told: Callable[[str], None] = lambda _: None
) -> Iterator[Fault]:
    """What is missing, leads elsewhere, or is of another size or, if `digests` are compared, of other content.

    `told`: of every file when it has been looked at.
    """
    for name, facts in files.items():
        if why := _file_fault(path, name, facts, digests=digests):
            yield Fault(name, f"{path / name}: {why}")
        told(name)


def _file_fault(path: Path, name: str, facts: Mapping[str, Any], *, digests: bool) -> str:
    file = path / name
    if leads_outside(path, name):
        return "is a link that leads out of the bundle; copy the file itself into it"
    if not file.is_file():
        return "is missing from the bundle; copy the whole folder, or make it again"
    if (size := file.stat().st_size) != facts["size"]:
        return f"has {size} bytes, expected {facts['size']}; it was truncated or changed, copy it again"
    try:
        if digests and file_sha256(file) != facts["sha256"]:
            return f"its SHA-256 is not the one in {MANIFEST}; it was changed, copy it again"
    except OSError as error:
        return f"cannot be read ({error.strerror or error}); copy it again"
    return ""


def read_index(path: Path) -> dict[str, str]:
    """Tensor name -> shard; KQuantError where the index is damaged or names another folder's file."""
    index = read_json(path / INDEX)
    return weight_map(index, INDEX_REFUSALS, path=path / INDEX, ending=".safetensors", subfolders=False)


def listing_faults(path: Path, files: Facts, shards: Collection[str]) -> Iterator[Fault]:
    """What the manifest should list and does not: then nothing could say that it was changed."""
    for name in sorted({CONFIG, INDEX, *shards} - set(files)):
        why = f"{path / MANIFEST}: files does not list {name!r}; the bundle is damaged, make it again"
        yield Fault(name, why)


def stray_faults(path: Path, files: Facts, shards: Collection[str]) -> Iterator[Fault]:
    """Weights that lie beside the bundle's own, some of which transformers would load in place of these."""
    own = {INDEX, *shards}
    for name in sorted(entry.name for entry in path.iterdir()):
        if name in own or not (name in PREFERRED or (name not in files and is_weights(name))):
            continue
        yield Fault(
            name,
            f"{path / name}: holds weights or names them, but is no part of the bundle, and may be loaded in place of "
            f"it; move it elsewhere",
        )


def is_weights(name: str) -> bool:
    """Whether a file is one of the model's weights by its name; those in subfolders are another module's."""
    return "/" not in name and any(fnmatchcase(name.lower(), pattern) for pattern in WEIGHTS)


def read_shards(path: Path, index: Mapping[str, str]) -> tuple[dict[str, TensorInfo], list[Fault]]:
    """Every tensor of the shards that can be read, and where these and the index do not name the same."""
    infos: dict[str, TensorInfo] = {}
    faults: list[Fault] = []
    for shard in sorted(set(index.values())):
        try:
            held = read_header(path / shard)
        except KQuantError as error:
            faults.append(Fault(shard, str(error)))
            continue
        for name in sorted(set(held) & set(infos)):
            why = f"{path / shard}: holds {name!r}, which {infos[name].file.name} holds, too; make the bundle again"
            faults.append(Fault(name, why))
        infos |= held
    for name in sorted(set(index) ^ set(infos)):
        if index.get(name) in {fault.name for fault in faults}:
            continue  # its shard was named
        where = "has no tensor" if name in index else "does not name the stored tensor"
        faults.append(Fault(name, f"{path / INDEX}: the bundle {where} {name!r}; it is damaged, make it again"))
    for name, info in infos.items():
        if name in index and index[name] != info.file.name:
            why = f"{path / INDEX}: says that {name!r} is in {index[name]}, where it is not; make the bundle again"
            faults.append(Fault(name, why))
    return infos, faults
