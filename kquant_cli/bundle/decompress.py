"""A bundle back into a plain dense Hugging Face checkpoint, by our own writer (kquant is not needed to load it)."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from kquant_cli.bundle.format import CONFIG, INDEX
from kquant_cli.bundle.output_folder import check_place, is_free, open_output, put_in_place, require_space, writing
from kquant_cli.bundle.part_folder import fresh, open_part
from kquant_cli.bundle.reader import Bundle
from kquant_cli.bundle.replacing import require_only
from kquant_cli.bundle.whole import is_weights
from kquant_cli.bundle.writer import Entry, copy_files, file_hashes, write_weights
from kquant_cli.errors import KQuantError
from kquant_cli.files.digests import file_sha256
from kquant_cli.files.json_object import find_object, strict, write_json
from kquant_cli.files.safe_names import stays_inside

PROVENANCE = "kquant-dense.json"  # what the checkpoint was decoded from, and its files, which may be replaced


def write_dense(
    bundle: Bundle,
    out: Path,
    dtype: torch.dtype | None = None,
    *,
    overwrite: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> int:
    """Write the decoded model into the folder `out`, aside and then renamed; returns the bytes of its tensors.

    `dtype`: of all floating tensors; None keeps the source's. Where that very checkpoint is there already, it stays.

    Raises
    ------
    KQuantError
        `out` overlaps with the bundle, exists (and is not a checkpoint of ours that `overwrite` may replace), is being
        written by another process, or cannot be written.
    """
    check_place(out, bundle.path)
    entries = _entries(bundle, dtype)
    total = sum(entry.nbytes for entry in entries)
    facts = _facts(bundle, dtype)
    with (
        writing(out, total),
        open_output(out, bundle.path, say, reading=not overwrite and not is_free(out)) as part,
    ):
        if not overwrite and _is_there(out, facts):
            say(f"{out}: this checkpoint is already there and complete; nothing to do")
            return total
        _require_replaceable(out, out, overwrite=overwrite)
        if part is None:
            raise PermissionError(errno.EACCES, "its folder cannot be written")
        if open_part(out, "decompress")[1]:
            say(f"discarded unfinished work in {part}, which was of kquant compress")
        require_space(part, out, total)
        folder = fresh(part)
        written = write_weights(folder, entries)
        config = strict({k: v for k, v in bundle.config.items() if k != "quantization_config"})
        if dtype is not None:
            config = {k: v for k, v in config.items() if k != "torch_dtype"} | {"dtype": str(dtype).split(".")[1]}
        write_json(folder / CONFIG, config)
        ours = {CONFIG, INDEX, *(info.file.name for info in bundle.infos.values())}
        names = [Path(name) for name in bundle.manifest["files"] if name not in ours and not is_weights(name)]
        copy_files(bundle.path, names, folder)
        files = file_hashes(folder, written.sha256)
        write_json(folder / PROVENANCE, {"decoded_from": facts, "files": files})
        put_in_place(part, out, lambda place: _require_replaceable(place, out, overwrite=overwrite))
    return total


def _facts(bundle: Bundle, dtype: torch.dtype | None) -> dict[str, Any]:
    """What was decoded: from which bundle of which content, and to which type."""
    content = sha256(json.dumps(bundle.manifest["files"], sort_keys=True).encode()).hexdigest()
    facts = {"bundle": bundle.manifest.get("fingerprint"), "source": bundle.manifest.get("source")}
    return {**facts, "content": content, "dtype": str(dtype).split(".")[1] if dtype else None}


def _is_there(out: Path, facts: Mapping[str, Any]) -> bool:
    """Whether the checkpoint of these facts is there, whole."""
    found = find_object(out / PROVENANCE) or {}
    files = found.get("files")
    if found.get("decoded_from") != facts or not isinstance(files, dict) or not all(map(stays_inside, files)):
        return False
    return all(
        isinstance(known, dict)
        and (out / name).is_file()
        and (out / name).stat().st_size == known.get("size")
        and file_sha256(out / name) == known.get("sha256")
        for name, known in files.items()
    )


def _require_replaceable(folder: Path, out: Path, *, overwrite: bool) -> None:
    """Raise KQuantError unless `folder`, which is `out` or was, is free or may be replaced."""
    if is_free(folder):
        return
    provenance = find_object(folder / PROVENANCE)
    if provenance is None:
        raise KQuantError(f"{out}: exists and was not written by kquant decompress; choose another --output")
    if not overwrite:
        raise KQuantError(f"{out}: exists already; choose another --output, or --overwrite it")
    files = provenance.get("files")
    require_only(folder, out, {PROVENANCE, *files} if isinstance(files, dict) else {PROVENANCE})


def _entries(bundle: Bundle, dtype: torch.dtype | None) -> list[Entry]:
    def entry(name: str, stored: torch.dtype, shape: tuple[int, ...]) -> Entry:
        target = dtype if dtype and stored.is_floating_point else stored
        return Entry(name, target, shape, lambda: bundle.tensor(name, target if target != stored else None))

    return [entry(*facts) for facts in bundle.shapes()]
