"""A bundle back into a plain dense Hugging Face checkpoint, by our own writer (kquant is not needed to load it)."""

from __future__ import annotations

from pathlib import Path

import torch

from kquant_cli.bundle.format import CONFIG, INDEX
from kquant_cli.bundle.output_folder import check_place, fresh, is_free, open_part, put_in_place, writing
from kquant_cli.bundle.reader import Bundle
from kquant_cli.bundle.writer import Entry, copy_files, write_weights
from kquant_cli.errors import KQuantError
from kquant_cli.files.json_object import write_json

PROVENANCE = "kquant-dense.json"  # what the checkpoint was decoded from; marks the folder as one that may be replaced


def write_dense(bundle: Bundle, out: Path, dtype: torch.dtype | None = None, *, overwrite: bool = False) -> int:
    """Write the decoded model into the folder `out`, aside and then renamed; returns the bytes of its tensors.

    `dtype`: of all floating tensors; None keeps the source's.

    Raises
    ------
    KQuantError
        `out` overlaps with the bundle, exists (and is not a checkpoint of ours that `overwrite` may replace), or
        cannot be written.
    """
    check_place(out, bundle.path)
    entries = _entries(bundle, dtype)
    with writing(out, sum(entry.nbytes for entry in entries)):
        if not is_free(out):
            if not (out / PROVENANCE).is_file():
                raise KQuantError(f"{out}: exists and was not written by kquant decompress; choose another --output")
            if not overwrite:
                raise KQuantError(f"{out}: exists already; choose another --output, or --overwrite it")
        part, _ = open_part(out, "decompress")
        folder = fresh(part)
        total = write_weights(folder, entries).nbytes
        config = {k: v for k, v in bundle.config.items() if k != "quantization_config"}
        if dtype is not None:
            config = {k: v for k, v in config.items() if k != "torch_dtype"} | {"dtype": str(dtype).split(".")[1]}
        write_json(folder / CONFIG, config)
        ours = {CONFIG, INDEX, *(info.file.name for info in bundle.infos.values())}
        others = {name: facts["sha256"] for name, facts in bundle.manifest["files"].items() if name not in ours}
        copy_files(bundle.path, map(Path, others), folder, others)
        facts = {"bundle": bundle.manifest.get("fingerprint"), "source": bundle.manifest.get("source")}
        write_json(folder / PROVENANCE, {"decoded_from": facts})
        put_in_place(part, out)
    return total


def _entries(bundle: Bundle, dtype: torch.dtype | None) -> list[Entry]:
    def entry(name: str, stored: torch.dtype, shape: tuple[int, ...]) -> Entry:
        target = dtype if dtype and stored.is_floating_point else stored
        return Entry(name, target, shape, lambda: bundle.tensor(name, target if target != stored else None))

    return [entry(*facts) for facts in bundle.shapes()]
