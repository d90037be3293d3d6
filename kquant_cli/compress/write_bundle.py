"""What a run has found and encoded -> the files of a bundle."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kquant_cli.bundle.format import CONFIG, FORMAT_VERSION, MANIFEST
from kquant_cli.bundle.staging import Staged
from kquant_cli.bundle.writer import Entry, bundle_config, copy_files, file_hashes, staged_entries, write_weights
from kquant_cli.checkpoint import Checkpoint
from kquant_cli.compress.preparation import Prepared
from kquant_cli.files.json_object import write_json

if TYPE_CHECKING:
    from kquant_cli.tuning.tune import Tuned


def write_bundle(
    prepared: Prepared, folder: Path, staged: dict[str, Staged], tuned: Tuned | None, identity: dict[str, Any]
) -> None:
    """Everything of the bundle but run.json, into an empty folder."""
    plan, checkpoint = prepared.plan, prepared.plan.checkpoint
    allocation = {"allocation": prepared.allocation.to_dict()} if prepared.allocation else {}
    tuning = {"tuning": tuned.to_dict()} if tuned else {}
    written = write_weights(folder, _entries(checkpoint, staged, tuned))
    write_json(folder / CONFIG, bundle_config(checkpoint.config, staged.values()))
    digests = {file.relative_to(checkpoint.path).as_posix(): d for file, d in checkpoint.seen.sha256.items()}
    copied = copy_files(checkpoint.path, checkpoint.other_files, folder, digests, follow=True)
    manifest = {
        "format_version": FORMAT_VERSION,
        **identity,
        "notes": list(plan.notes),
        "statistics": prepared.statistics,
        **allocation,
        **tuning,
        "tied": dict(checkpoint.tied),
        "totals": {
            "parameters": plan.parameters,
            "source_bytes": plan.source_bytes,
            "bytes": written.nbytes,
            "encoded_weights": sum(j.weights for j in plan.jobs if staged[j.matrix.tensor].layout is not None),
            "encoded_bytes": sum(s.nbytes for s in staged.values()),
        },
        "matrices": {
            s.name: {"shape": list(job.matrix.shape), "bytes": s.nbytes, **asdict(s.record)}
            for job in plan.jobs
            for s in (staged[job.matrix.tensor],)
        },
        "files": file_hashes(folder, {**written.sha256, **copied}),
    }
    write_json(folder / MANIFEST, manifest)


def _entries(checkpoint: Checkpoint, staged: dict[str, Staged], tuned: Tuned | None) -> Iterator[Entry]:
    """The bundle's tensors in the source's order, with what was tuned in place of what was not."""
    changed = tuned.tensors() if tuned else {}
    for name, info in checkpoint.tensors.items():
        if name in staged and staged[name].layout is not None:
            found = staged_entries(staged[name])
        else:
            found = [Entry(name, info.dtype, tuple(info.shape), lambda name=name: checkpoint.read(name))]  # type: ignore[misc]
        for entry in found:
            value = changed.get(entry.name)
            yield entry if value is None else replace(entry, read=lambda v=value, d=entry.dtype: v.to(d))  # type: ignore[misc]
