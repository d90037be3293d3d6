"""What a run finds out of the model before it encodes: its text and moments, or channel scales; levels of an average.

Matrices that are calibrated on text need the model in memory (calibration/session.py). For the others it runs on random
tokens, a module at a time: once for channel scales, a few times for the sensitivities that levels follow from. What is
measured is kept in small files beside the bundle (`<name>.text.safetensors`, `<name>.stats.safetensors`,
`<name>.sensitivity.json`), so that a run that goes on, or another at other bits to the same name, need not measure it
again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import islice
from math import log2
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kquant_cli.allocation import AllocationPlan
from kquant_cli.calibration import (
    OWN,
    RANDOM,
    InputGroup,
    Scale,
    StatisticsUnavailable,
    column_energy,
    load_or_collect,
    searched_scale,
    statistics_path,
    text_digest,
    white_error_scale,
)
from kquant_cli.compress.average import Stage, allocate
from kquant_cli.compress.efforts import calibration_tokens
from kquant_cli.compress.plan import WORDS, Job, Plan, possible_counts
from kquant_cli.compress.weights import read_weight
from kquant_cli.config import EncoderConfig
from kquant_cli.encoders import encode
from kquant_cli.errors import KQuantError, is_shortage
from kquant_cli.overlap import ahead

if TYPE_CHECKING:
    from kquant_cli.calibration.gradient_moments import GradientMoments
    from kquant_cli.calibration.session import Session

SAMPLED_ROWS = 64  # of each matrix that other encoders try a channel scale on


@dataclass(frozen=True)
class Prepared:
    """The plan with nothing left open, and what was measured for it."""

    plan: Plan
    scales: Mapping[str, Tensor]  # the channel scale (in_features,) by the matrix's name
    statistics: dict[str, Any]  # for the manifest
    allocation: AllocationPlan | None
    session: Session | None = None  # the model in memory, where matrices are to be calibrated on text,
    moments: GradientMoments | None = None  # and what its forward pass kept

    def digest(self) -> str:
        """A hash of all that matrices are encoded with beside the settings: channel scales, and levels allotted."""
        digest = sha256()
        for job in self.plan.jobs:
            digest.update(f"{job.matrix.name} {job.config.level_count} {job.scale_owner} {job.calibrated}\n".encode())
            if (scale := self.scales.get(job.matrix.name)) is not None:
                digest.update(scale.cpu().numpy().tobytes())
        if self.session is not None:
            digest.update(text_digest(self.session.ids).encode())
        return digest.hexdigest()


def prepare(
    plan: Plan,
    out: Path,
    content: str,
    *,
    device: torch.device | str,
    stage: Stage = lambda _what, _done, _all: None,
    say: Callable[[str], None] = lambda _: None,
) -> Prepared:
    """Measure what `plan` leaves open for the bundle `out`; `content`: the hash of the checkpoint.

    Raises
    ------
    KQuantError
        A text cannot be used, the model cannot be run for sensitivities, or the average of bits is too small.
    """
    where = torch.device(device)
    plan, session, moments = _with_session(plan, out, content, where, stage, say)
    plan, scales, facts = _with_scales(plan, out, content, device, stage, say)
    if session is not None:
        facts |= session.facts
    if not any(job.config.is_average for job in plan.jobs):
        return Prepared(plan, scales, facts, None, session, moments)
    allocation = allocate(plan, scales, session, moments, out, content, device, stage, say)
    levels = allocation.levels()
    jobs = (
        replace(job, config=job.config.model_copy(update={"levels": levels[job.matrix.name]}))
        if job.matrix.name in levels
        else job
        for job in plan.jobs
    )
    return Prepared(replace(plan, jobs=tuple(jobs)), scales, facts, allocation, session, moments)


def _with_session(
    plan: Plan,
    out: Path,
    content: str,
    device: torch.device,
    stage: Stage,
    say: Callable[[str], None],
) -> tuple[Plan, Session | None, GradientMoments | None]:
    """The model in memory with its text, after the forward pass; without them, no job is calibrated any more."""
    if not any(job.calibrated for job in plan.jobs):
        return plan, None, None
    from kquant_cli.calibration.gradient_moments import GradientMoments  # noqa: PLC0415 - imports transformers
    from kquant_cli.calibration.session import open_session, text_path  # noqa: PLC0415

    config = plan.config
    try:
        session = open_session(
            plan.checkpoint,
            OWN if config.calibration == "auto" else config.calibration,
            calibration_tokens(config, max(job.matrix.shape[1] for job in plan.jobs if job.calibrated)),
            seed=config.seed,
            device=device,
            file=text_path(out),
            fingerprint=content,
            progress=lambda done, total: stage("the model writes its text", done, total),
            say=say,
        )
        moments = GradientMoments(session.model, session.ids, device)
        moments.forward(lambda done, total: stage("forward pass on the text", done, total))
    except StatisticsUnavailable as reason:
        if is_shortage(reason):
            raise
        said = str(reason).replace(str(plan.checkpoint.path), plan.checkpoint.name)  # no folder of this machine
        if config.calibration != "auto":
            raise KQuantError(f"{said}; give --calibration random or none") from reason
        note = f"no calibration on the model's own text, which costs quality: {said}"
        say(f"warning: {note}")
        jobs = tuple(replace(job, calibrated=False) for job in plan.jobs)
        return replace(plan, jobs=jobs, notes=(*plan.notes, note)), None, None
    return plan, session, moments


def _with_scales(
    plan: Plan, out: Path, content: str, device: torch.device | str, stage: Stage, say: Callable[[str], None]
) -> tuple[Plan, dict[str, Tensor], dict[str, Any]]:
    """The jobs with the modules that keep their channel scales, the scales, and what the manifest says of them."""
    config, jobs = plan.config, {job.matrix.name: job for job in plan.jobs}
    names = [name for name, job in jobs.items() if not job.calibrated and not job.matrix.of_tokens]
    plan = replace(plan, scales_known=True)
    if config.calibration == "none" or not names:
        return plan, {}, {"source": "none"}
    try:
        statistics = load_or_collect(
            plan.checkpoint,
            names,
            RANDOM if config.calibration in WORDS else config.calibration,
            seed=config.seed,
            device=device,
            file=statistics_path(out),
            fingerprint=content,
            progress=lambda done, total: stage("statistics of the layers' inputs", done, total),
            say=say,
        )
    except StatisticsUnavailable as reason:
        if is_shortage(reason):
            raise
        note = f"no channel scaling, which costs quality: {reason}"
        say(f"warning: {note}")
        return replace(plan, notes=(*plan.notes, note)), {}, {"source": "none"}
    scales: dict[str, Tensor] = {}
    groups: list[dict[str, Any]] = []
    matrices = [jobs[name].matrix for group in statistics.groups for name in group.members]
    with ahead(read_weight(plan.checkpoint, matrix, device) for matrix in matrices) as weights:
        for group in statistics.groups:
            found = _group_scale([jobs[name] for name in group.members], group, weights, device)
            groups.append({"members": list(group.members), "loss": found.loss, "exponents": [found.a, found.b]})
            if found.loss < 1:
                scales |= dict.fromkeys(group.members, found.d.half())
                for name in group.members:  # a matrix that is kept dense stores nothing
                    owner = name if config.on_no_convergence == "keep" else group.members[0]
                    jobs[name] = replace(jobs[name], scale_owner=owner)
    for note in statistics.notes:
        say(f"note: {note}")
    plan = replace(plan, jobs=tuple(jobs.values()), notes=(*plan.notes, *statistics.notes))
    return plan, scales, {"source": statistics.source, "tokens": statistics.tokens, "groups": groups}


def _group_scale(
    jobs: Sequence[Job], group: InputGroup, weights: Iterator[Tensor], device: torch.device | str
) -> Scale:
    """The channel scale of the layers `jobs`, which share an input; their weights are the next of `weights`."""
    samples: list[Tensor] = []

    def each() -> Iterator[Tensor]:
        for weight in islice(weights, len(jobs)):
            on_device = weight.to(device, non_blocking=True)
            if not white:
                samples.append(on_device[:: -(-len(weight) // SAMPLED_ROWS)].to(torch.float32, copy=True))
            yield on_device

    white = all(job.config.chosen.spreads_error for job in jobs)
    energy = column_energy(each()).cpu()
    if white:
        return white_error_scale(energy, group.second_moments)
    moments = group.second_moments.to(device)
    configs = [_whole(job.config) for job in jobs]

    def loss(d: Tensor) -> float:
        """sum_j m_j |e_j|^2 of the sampled rows, really encoded."""
        total = 0.0
        for weight, config in zip(samples, configs, strict=True):
            error = encode(weight, config, d).decode() - weight
            total += float(error.double().square().sum(dim=0) @ moments.double())
        return total

    return searched_scale(energy, group.second_moments, loss)


def _whole(config: EncoderConfig) -> EncoderConfig:
    """The settings with a level count, the nearest where they have only an average."""
    if not config.is_average:
        return config
    nearest = min(possible_counts(config), key=lambda levels: abs(log2(levels) - config.bits))
    return config.model_copy(update={"levels": nearest})
