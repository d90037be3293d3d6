"""Compress: walk a checkpoint's matrices, encode each, write a bundle.

While a matrix is encoded the next one is read and the codes of the last one are written (overlap.py): no more than that
is in memory. A run is identified by its fingerprint: settings, format and the content of the source. Finished matrices
are kept (bundle/staging.py), so the same run goes on where an earlier one was interrupted.
"""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kquant_cli.bundle.format import RUN
from kquant_cli.bundle.output_folder import open_output, put_in_place, writing
from kquant_cli.bundle.part_folder import fresh
from kquant_cli.bundle.staging import Staged, Staging
from kquant_cli.calibration import import_early, statistics_path
from kquant_cli.compress.average import Stage
from kquant_cli.compress.efforts import tuning_budget
from kquant_cli.compress.identity import cautions, identity_of, versions_of
from kquant_cli.compress.kept_dense import names_of
from kquant_cli.compress.kept_files import kept_beside
from kquant_cli.compress.memory import enough_memory, within_memory
from kquant_cli.compress.output import check_output, is_taken, needed_bytes, ready, require_replaceable, require_same
from kquant_cli.compress.plan import Job, Plan
from kquant_cli.compress.preparation import Prepared, prepare
from kquant_cli.compress.weights import read_weight
from kquant_cli.compress.write_bundle import write_bundle
from kquant_cli.encoded import EncodedMatrix, Record
from kquant_cli.encoders import encode, relative_error
from kquant_cli.errors import KQuantError
from kquant_cli.files.json_object import write_json
from kquant_cli.overlap import Behind, ahead
from kquant_cli.process_memory import resident_set, return_freed_memory

if TYPE_CHECKING:
    from kquant_cli.tuning.tune import Tuned

Say = Callable[[str], None]


@dataclass(frozen=True)
class Progress:
    """Told after every matrix."""

    job: Job
    record: Record
    resumed: bool
    seconds: float


def compress(
    plan: Plan,
    out: Path,
    *,
    device: torch.device | str = "cpu",
    overwrite: bool = False,
    progress: Callable[[Progress], None] = lambda _: None,
    stage: Stage = lambda _what, _done, _all: None,
    say: Callable[[str], None] = lambda _: None,
) -> bool:
    """Carry out `plan` into the bundle `out`; False when an equal and complete bundle was there already.

    Raises
    ------
    KQuantError
        `out` is something else that may not be replaced or is being written by another process, a weight is not finite,
        or no space is left.
    """
    check_output(out, plan.checkpoint.path)
    began = time.perf_counter()
    plan = within_memory(plan, device, say)
    needed, taken = needed_bytes(plan), is_taken(out, overwrite)
    with (
        writing(out, needed),
        enough_memory(plan.config),
        open_output(out, plan.checkpoint.path, say, reading=taken) as part,
    ):
        folder = None if taken else ready(part, out, needed, overwrite=overwrite)
        measured = plan.config.calibration != "none" and not statistics_path(out).exists()
        with import_early(measured and folder is not None):
            identity, versions = identity_of(plan, device), versions_of(plan, device)
        if folder is None:
            require_same(out, identity["fingerprint"])
            return False
        for sentence in plan.checkpoint.left_out:
            say(f"note: {sentence}")
        with kept_beside(out, folder) as inside:
            prepared = prepare(plan, inside, identity["source"]["sha256"], device=device, stage=stage, say=say)
        plan = _with_infinite(prepared.plan, say)
        staging = Staging(out, " ".join([identity["fingerprint"], prepared.digest(), *versions.values()]))
        if staging.discarded:
            say(f"discarded unfinished work in {staging.folder}, which was of other settings or weights")
        if prepared.allocation is not None:
            say(prepared.allocation.sentence())
        for caution in cautions(plan, device):
            say(caution)
        notes = _calibrate(prepared, staging, device, progress)
        staged = _encode_all(plan, prepared.scales, staging, device, progress)
        tuned = _tune(prepared, staged, staging, device, stage, say)
        if tuned is not None:
            staged = _restated(plan, staged, tuned, device)
        new = fresh(folder)
        for note in (*notes, *(tuned.notes if tuned else ())):
            say(f"note: {note}")
        plan = replace(plan, notes=(*plan.notes, *notes, *(tuned.notes if tuned else ())))
        write_bundle(replace(prepared, plan=plan), new, staged, tuned, identity | {"versions": versions})
        run = {"seconds": round(time.perf_counter() - began, 3), "peak_memory_bytes": resident_set("peak")}
        write_json(new / RUN, {**run, "host": platform.node(), "platform": platform.platform()})
        plan.checkpoint.require_unchanged()
        put_in_place(folder, out, lambda place: require_replaceable(place, out, overwrite=overwrite))
    return True


@contextmanager
def rehearse(
    plan: Plan,
    out: Path,
    *,
    device: torch.device | str = "cpu",
    overwrite: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Iterator[tuple[Plan, Path]]:
    """Refuse what `compress` would refuse before its work; within it, plan and `out` as `prepare` takes them.

    Nothing stays that was not there, but the files kept beside `out`. Raises KQuantError as `compress` does.
    """
    check_output(out, plan.checkpoint.path)
    plan = within_memory(plan, device, say)
    needed, taken = needed_bytes(plan), is_taken(out, overwrite)
    with (
        writing(out, needed),
        enough_memory(plan.config),
        open_output(out, plan.checkpoint.path, say, reading=taken) as part,
    ):
        if taken:
            require_same(out, identity_of(plan, device)["fingerprint"])
            say(f"{out}: this bundle is already there and complete")
            yield plan, out
        else:
            with kept_beside(out, ready(part, out, needed, overwrite=overwrite)) as inside:
                yield plan, inside


def _with_infinite(plan: Plan, say: Callable[[str], None]) -> Plan:
    """The plan with a note on the dense tensors that hold infinities."""
    if not plan.checkpoint.infinite:
        return plan
    note = f"kept bit for bit with entries that are infinite: {names_of(sorted(plan.checkpoint.infinite))}"
    say(f"note: {note}")
    return replace(plan, notes=(*plan.notes, note))


def _calibrate(
    prepared: Prepared, staging: Staging, device: torch.device | str, progress: Callable[[Progress], None]
) -> tuple[str, ...]:
    """Encode what is calibrated on text; sentences on what cannot be, and is left to `_encode_all`."""
    if prepared.moments is None:
        return ()
    from kquant_cli.compress.calibrated import encode_calibrated  # noqa: PLC0415 - imports transformers

    def done(job: Job, staged: Staged, seconds: float) -> None:
        progress(Progress(job, staged.record, False, seconds))

    for job in prepared.plan.jobs:
        if job.calibrated and (found := staging.find(job.matrix.name, job.matrix.shape)):
            progress(Progress(job, found.record, True, 0.0))

    notes = encode_calibrated(prepared.plan, prepared.moments, staging, torch.device(device), done)
    prepared.moments.release()
    return_freed_memory()
    return notes


def _tune(
    prepared: Prepared,
    staged: Mapping[str, Staged],
    staging: Staging,
    device: torch.device | str,
    stage: Stage,
    say: Say,
) -> Tuned | None:
    """Tune what was calibrated on text, if the settings ask for it."""
    budget = tuning_budget(prepared.plan.config, torch.device(device).type)
    if prepared.session is None or budget is None:
        return None
    from kquant_cli.compress.calibrated import tune  # noqa: PLC0415 - imports transformers

    by_name = {one.name: one for one in staged.values()}
    return tune(
        prepared.plan,
        prepared.session,
        by_name,
        staging,
        budget,
        lambda done, total: stage("tuning of scales and norms", done, total),
        say,
    )


def _restated(plan: Plan, staged: Mapping[str, Staged], tuned: Tuned, device: torch.device | str) -> dict[str, Staged]:
    """The finished matrices with the errors that tuned scales leave."""
    changed = dict(staged)
    for job in plan.jobs:
        if (scales := tuned.scales.get(job.matrix.name)) is not None:
            one = staged[job.matrix.tensor]
            scale, col_scale = scales
            encoded = replace(one.encoded(), scale=scale, col_scale=col_scale)
            error = relative_error(read_weight(plan.checkpoint, job.matrix, device), encoded)
            changed[job.matrix.tensor] = replace(one, record=replace(one.record, relative_error=error))
    return changed


def _encode_all(
    plan: Plan,
    scales: Mapping[str, Tensor],
    staging: Staging,
    device: torch.device | str,
    progress: Callable[[Progress], None],
) -> dict[str, Staged]:
    """Every matrix, finished and kept, by the name of its tensor."""
    finished = {
        job.matrix.tensor: found for job in plan.jobs if (found := staging.find(job.matrix.name, job.matrix.shape))
    }
    matrices = [job.matrix for job in plan.jobs if job.matrix.tensor not in finished]
    saved: dict[str, Future[Staged]] = {}
    with Behind[Staged]() as behind, ahead(read_weight(plan.checkpoint, m, device) for m in matrices) as weights:
        for job in plan.jobs:
            start = time.perf_counter()
            done = finished.get(job.matrix.tensor)
            if done is None:
                encoded, record = _encode(plan, job, next(weights), scales.get(job.matrix.name), device)
                layout, parts = (encoded.layout, encoded.to_tensors()) if encoded else (None, {})
                saved[job.matrix.tensor] = behind.run(staging.save, job.matrix.name, layout, parts, record)
                del encoded, parts
                return_freed_memory()
            else:
                record = done.record
            if done is None or not job.calibrated:
                progress(Progress(job, record, done is not None, time.perf_counter() - start))
    whole = finished | {tensor: future.result() for tensor, future in saved.items()}
    return {
        job.matrix.tensor: whole[job.matrix.tensor] for job in plan.jobs
    }  # in an order that no interruption changes


def _encode(
    plan: Plan, job: Job, weight: Tensor, channel_scale: Tensor | None, device: torch.device | str
) -> tuple[EncodedMatrix | None, Record]:
    """Encode one weight (out_features, in_features), or give the settings' answer to one that does not converge."""
    weight = weight.to(device, non_blocking=True).contiguous()
    encoded = encode(weight, job.config, channel_scale)
    assert encoded.record is not None
    record = encoded.record
    if not math.isfinite(record.relative_error):
        raise KQuantError(
            f"{plan.checkpoint.name}: tensor {job.matrix.tensor!r} has entries too large to be encoded; leave it out "
            f"with --exclude {job.matrix.tensor}"
        )
    if record.converged is False and plan.config.on_no_convergence != "encode":
        fallback = plan.config.fallback(job.config)
        if fallback is None:
            return None, replace(record, outcome="kept", relative_error=0.0)
        first = record
        encoded = encode(weight, fallback, channel_scale)
        assert encoded.record is not None
        record = replace(encoded.record, outcome="fallback", iterations=first.iterations, trace=first.trace)
        record = replace(record, converged=False, u_max=first.u_max, v_max=first.v_max)
    shared = job.scale_owner if job.scale_owner != job.matrix.name else None
    layout = replace(encoded.layout, transposed=job.matrix.transposed, channel_scale_from=shared)
    return replace(encoded, layout=layout, record=record), record
