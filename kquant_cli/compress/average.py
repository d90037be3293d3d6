"""The level counts that an average of bits comes to, by sensitivities: of a calibration, or of noise in one matrix."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kquant_cli.allocation import AllocationPlan, Option, fused_groups, plan_levels
from kquant_cli.calibration import DATA_FREE, measuring_threads
from kquant_cli.compress.plan import WORDS, Job, Plan, possible_counts
from kquant_cli.errors import KQuantError
from kquant_cli.hf.quiet import quiet

if TYPE_CHECKING:
    from kquant_cli.calibration.gradient_moments import GradientMoments
    from kquant_cli.calibration.session import Session

Stage = Callable[[str, int, int], None]  # (what, done, in all)


def allocate(
    plan: Plan,
    scales: Mapping[str, Tensor],
    session: Session | None,
    moments: GradientMoments | None,
    out: Path,
    content: str,
    device: torch.device | str,
    stage: Stage,
    say: Callable[[str], None],
) -> AllocationPlan:
    """The level counts of all matrices within the average, those of a rule with bits or levels of its own as they are.

    Input embedding and output head are outside it.
    """
    plan = replace(plan, jobs=tuple(job for job in plan.jobs if not job.matrix.of_tokens))
    if session is not None and moments is not None and all(job.calibrated for job in plan.jobs):
        values, source = _sensitivities(plan, session, moments, stage, say), session.source
    else:
        values, source = _measured(plan, scales, out, content, device, stage, say)
    weights = {job.matrix.name: job.weights for job in plan.jobs}
    fused = fused_groups(weights) if plan.config.equal_fused else ()
    try:
        return plan_levels(weights, _options(plan.jobs), values, float(plan.config.bits), source=source, together=fused)
    except ValueError as error:
        raise KQuantError(
            f"`bits` is {plan.config.bits}, less than the fewest levels take with their codebooks and scales (rules "
            f"for layers are kept); give more"
        ) from error


def _sensitivities(
    plan: Plan, session: Session, moments: GradientMoments, stage: Stage, say: Callable[[str], None]
) -> dict[str, float]:
    """Those of the calibration's gradients; a matrix that these do not know gets the others' mean."""
    from kquant_cli.calibration.sensitivity import filled  # noqa: PLC0415 - imports transformers
    from kquant_cli.compress.calibrated import sensitivities  # noqa: PLC0415

    def told(done: int, total: int) -> None:
        stage("sensitivities of the layers", done, total)

    found = sensitivities(plan, moments, session.ids.numel(), session.device, told)
    return filled([job.matrix.name for job in plan.jobs], found, set(), lambda note: say(f"note: {note}"))


def _measured(
    plan: Plan,
    scales: Mapping[str, Tensor],
    out: Path,
    content: str,
    device: torch.device | str,
    stage: Stage,
    say: Callable[[str], None],
) -> tuple[dict[str, float], str]:
    """Sensitivities of forward passes with noise in one matrix, and what they were measured on."""
    from kquant_cli.calibration.sensitivity_cache import load_or_measure  # noqa: PLC0415 - imports transformers

    config = plan.config
    matrices = [job.matrix for job in plan.jobs]
    where = f"{torch.device(device).type} {measuring_threads(device)}"
    digest = sha256(f"{content} {config.seed} {where}".encode())
    for matrix in matrices:
        digest.update(f"\n{matrix.name}\n".encode())
        if matrix.name in scales:
            digest.update(scales[matrix.name].cpu().numpy().tobytes())
    source = DATA_FREE if config.calibration in WORDS else config.calibration
    with quiet():
        sensitivities = load_or_measure(
            plan.checkpoint,
            matrices,
            source,
            file=out.with_name(out.name + ".sensitivity.json"),
            fingerprint=digest.hexdigest(),
            seed=config.seed,
            device=device,
            channel_scales={name: scale.float() for name, scale in scales.items()},
            progress=lambda _name, done, total: stage("sensitivities of the layers", done, total),
            say=lambda note: say(f"note: {note}"),
        )
    return sensitivities, source


def _options(jobs: Sequence[Job]) -> dict[str, list[Option]]:
    """What each matrix may get: every number of levels that its encoder allows, or its rule's own."""
    alike: dict[Any, list[Option]] = {}  # of a thousand matrices few differ in what counts here
    for job in jobs:
        config = job.config
        if (key := job.kind) not in alike:
            counts = possible_counts(config) if config.is_average else (config.level_count,)
            made = {levels: replace(job, config=config.model_copy(update={"levels": levels})) for levels in counts}
            alike[key] = [
                Option(levels, one.nbytes, config.chosen.expected_error(levels, config.settings))
                for levels, one in made.items()
            ]
    return {job.matrix.name: alike[job.kind] for job in jobs}
