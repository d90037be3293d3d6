"""A bundle back into a plain dense Hugging Face checkpoint, by our own writer (kquant is not needed to load it)."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from kquant_cli.bundle.format import CONFIG, INDEX, MANIFEST, RESULTS, RUN, write_json
from kquant_cli.bundle.reader import Bundle
from kquant_cli.bundle.writer import Entry, copy_files, write_weights
from kquant_cli.errors import KQuantError


def write_dense(bundle: Bundle, out: Path, dtype: torch.dtype | None = None, *, overwrite: bool = False) -> int:
    """Write the decoded model into the folder `out`, aside and then renamed; returns the bytes of its tensors.

    `dtype`: of all floating tensors; None keeps the source's.

    Raises
    ------
    KQuantError
        `out` exists (and is not a dense checkpoint that `overwrite` may replace).
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        if not overwrite:
            raise KQuantError(f"{out}: exists already; choose another --output, or --overwrite it")
        if not (out / CONFIG).is_file():
            raise KQuantError(f"{out}: exists and is not a model folder, so it is not overwritten; choose another")
    part = out.with_name(out.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        total = write_weights(part, _entries(bundle, dtype))
        config = {k: v for k, v in bundle.config.items() if k != "quantization_config"}
        if dtype is not None:
            config = {k: v for k, v in config.items() if k != "torch_dtype"} | {"dtype": str(dtype).split(".")[1]}
        write_json(part / CONFIG, config)
        ours = {CONFIG, INDEX, MANIFEST, RUN, *{info.file.name for info in bundle.infos.values()}}
        others = [p.relative_to(bundle.path) for p in sorted(bundle.path.rglob("*")) if p.is_file()]
        copy_files(bundle.path, [p for p in others if p.name not in ours and p.parts[0] != RESULTS], part)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    if out.exists():
        shutil.rmtree(out)
    part.rename(out)
    return total


def _entries(bundle: Bundle, dtype: torch.dtype | None) -> list[Entry]:
    def entry(name: str, stored: torch.dtype, shape: tuple[int, ...]) -> Entry:
        target = dtype if dtype and stored.is_floating_point else stored
        return Entry(name, target, shape, lambda: bundle.tensor(name, target if target != stored else None))

    return [entry(*facts) for facts in bundle.shapes()]
