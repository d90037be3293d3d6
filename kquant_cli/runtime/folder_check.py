"""What is about to be loaded of a bundle is compared with its manifest and its index before.

A folder without a manifest is refused: nothing could say what its files should be. Three kinds have none and load all
the same: what `save_pretrained` wrote (its config says so: `resaved`), a snapshot of the hub for which no manifest can
be had (transformers downloads only what it loads), and one for which `KQUANT_WITHOUT_MANIFEST` is set.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from pathlib import Path

from kquant_cli import bundle as bundles
from kquant_cli.bundle.faults import refuse
from kquant_cli.bundle.format import CONFIG, INDEX, MANIFEST, read_json
from kquant_cli.bundle.whole import file_faults, listed_files, listing_faults, read_index, read_shards, stray_faults
from kquant_cli.checkpoint.hub import fetch_beside
from kquant_cli.errors import KQuantError
from kquant_cli.files.safe_names import is_snapshot
from kquant_cli.files.safetensors_format import TensorInfo
from kquant_cli.files.safetensors_reader import read_header

WITHOUT_MANIFEST, VERIFY = "KQUANT_WITHOUT_MANIFEST", "KQUANT_VERIFY"

logger = logging.getLogger(__name__)


def verify_folder(folder: Path, *, checksums: bool = True) -> None:
    """KQuantError when the files are not those of the manifest, or it is missing where there should be one."""
    quantization = bundles.read_bundle_config(folder)["quantization_config"]
    if _has_manifest(folder, resaved=quantization.get("resaved") is True):
        bundles.open_bundle(folder, verify=checksums)


def loaded_tensors(files: Iterable[Path], *, resaved: bool) -> dict[str, TensorInfo]:
    """Every tensor of the weight files that transformers is about to load, after comparing them with the bundle's.

    Names, sizes and index are compared, and with `KQUANT_VERIFY` set the SHA-256 of every file; what is in the cache of
    the hub may lack files, of which transformers downloads those that it loads.

    Raises
    ------
    KQuantError
        A file is not the bundle's, is missing, truncated or changed, or others would be loaded in its place.
    """
    by_name = {file.name: file for file in files}
    folder = next(iter(by_name.values())).parent
    if not _has_manifest(folder, resaved=resaved):
        refuse(stray_faults(folder, {}, by_name))
        if not (folder / INDEX).is_file():  # as `save_pretrained` leaves it, where one file holds all
            return {name: info for file in by_name.values() for name, info in read_header(file).items()}
        infos, faults = read_shards(folder, read_index(folder))
        refuse(faults)
        return infos
    listed, faults = listed_files(folder, read_json(folder / MANIFEST))
    refuse(faults)
    for name in sorted(set(by_name) - set(listed)):
        raise KQuantError(
            f"{by_name[name]}: would be loaded, but is no part of the bundle that {MANIFEST} describes; move it "
            f"elsewhere"
        )
    index = read_index(folder)
    shards = set(index.values())
    refuse(listing_faults(folder, listed, shards))
    needed = {CONFIG, INDEX, *shards}
    if is_snapshot(folder):
        listed = {name: facts for name, facts in listed.items() if name in needed or (folder / name).exists()}
    refuse(file_faults(folder, listed, digests=os.environ.get(VERIFY, "") not in ("", "0")))
    refuse(stray_faults(folder, listed, shards))
    infos, faults = read_shards(folder, index)
    refuse(faults)
    return infos


def _has_manifest(folder: Path, *, resaved: bool) -> bool:
    """Whether there is a manifest; KQuantError where it is missing though it should be there."""
    if (folder / MANIFEST).exists() or (folder / MANIFEST).is_symlink():
        return True
    if resaved or os.environ.get(WITHOUT_MANIFEST, "") not in ("", "0"):
        return False
    if is_snapshot(folder):
        if fetch_beside(folder, MANIFEST):
            return True
        logger.warning("%s: has no %s, so sizes and digests of its files are not compared", folder, MANIFEST)
        return False
    raise KQuantError(
        f"{folder}: has no {MANIFEST}, which says what its files should be; copy the whole folder, or set "
        f"{WITHOUT_MANIFEST}=1 to load it without"
    )
