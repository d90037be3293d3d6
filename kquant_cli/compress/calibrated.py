"""The calibrated part of a run: the model's text, its moments block by block, matrices encoded in them, and the tuning.

A block's matrices are encoded as soon as its moments are there; so that a stretch of columns is many lines of the
annealing, the moments of some blocks are kept until matrices of one shape are enough (`TOGETHER`), or `HELD` bytes.
What is finished is kept (bundle/staging.py): a run that goes on measures again, but encodes only what is missing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import log2
from typing import Any, Final

import torch
from torch import nn

from kquant_cli.bundle.staging import Staged, Staging
from kquant_cli.calibration.gradient_moments import GradientMoments
from kquant_cli.calibration.input_modules import find_input_modules, is_linear
from kquant_cli.calibration.session import Session
from kquant_cli.checkpoint import Checkpoint
from kquant_cli.compress.plan import Job, Plan
from kquant_cli.compress.weights import read_weight
from kquant_cli.encoded import EncodedMatrix
from kquant_cli.encoders import Metric, encode_in_metric, unit_losses
from kquant_cli.hf.parameter_names import parameter_lookup
from kquant_cli.tuning.budget import Budget
from kquant_cli.tuning.mixed_precision import computed_dtype, original
from kquant_cli.tuning.student import TunedLinear, can_be_tuned, right_basis
from kquant_cli.tuning.tune import Tuned, Tuning

TOGETHER: Final = {"cpu": 4, "cuda": 64}  # matrices of one shape
HELD: Final = 1 << 30  # bytes of moments

STATE: Final = "tuning.safetensors"  # in the run's own folder
RATES: Final = ((2.5, 4e-3), (3.5, 2e-3), (4.5, 6e-4), (8.0, 3e-4))  # of tuning, for so many bits at most

Done = Callable[[Job, Staged, float], None]
Told = Callable[[int, int], None]
Say = Callable[[str], None]


@dataclass
class Waiting:
    """Matrices with their metrics that are to be encoded together."""

    plan: Plan
    staging: Staging
    device: torch.device
    done: Done
    jobs: dict[Any, list[tuple[Job, Metric]]] = field(default_factory=dict)

    def add(self, job: Job, metric: Metric) -> None:
        """Take a matrix; encode all of its kind when they are enough, and all when they are too many."""
        kind = (job.matrix.shape, job.config)
        self.jobs.setdefault(kind, []).append((job, metric))
        if len(self.jobs[kind]) >= TOGETHER.get(self.device.type, TOGETHER["cpu"]):
            self._encode(kind)
        while self._bytes() > HELD:
            self._encode(max(self.jobs, key=lambda k: len(self.jobs[k])))

    def finish(self) -> None:
        """Encode what still waits."""
        while self.jobs:
            self._encode(next(iter(self.jobs)))

    def _bytes(self) -> int:
        return sum(8 * metric.first.numel() for jobs in self.jobs.values() for _, metric in jobs)

    def _encode(self, kind: Any) -> None:
        started = time.perf_counter()
        jobs = self.jobs.pop(kind)
        weights = [read_weight(self.plan.checkpoint, job.matrix, self.device).to(self.device) for job, _ in jobs]
        found = encode_in_metric([w.contiguous() for w in weights], [metric for _, metric in jobs], jobs[0][0].config)
        seconds = (time.perf_counter() - started) / len(jobs)
        for (job, _), encoded in zip(jobs, found, strict=True):
            self.done(job, self._save(job, encoded), seconds)

    def _save(self, job: Job, encoded: EncodedMatrix) -> Staged:
        assert encoded.record is not None
        layout = replace(encoded.layout, transposed=job.matrix.transposed)
        return self.staging.save(job.matrix.name, layout, replace(encoded, layout=layout).to_tensors(), encoded.record)


def encode_calibrated(
    plan: Plan, moments: GradientMoments, staging: Staging, device: torch.device, done: Done
) -> tuple[str, ...]:
    """Encode the plan's calibrated jobs that are not yet so in `staging`; sentences on those that cannot be.

    A run that goes on asks anew for those, too, that are there without calibration: its sentences are the same.
    """
    jobs = {job.matrix.name: job for job in plan.jobs if job.calibrated}
    missing = {name: job for name, job in jobs.items() if not _in_metric(staging.find(name, job.matrix.shape))}
    waiting, lost = Waiting(plan, staging, device, done), dict.fromkeys(missing, NOT_FOUND)
    if not missing:
        return ()
    for metrics, reasons in moments.backward([job.matrix for job in missing.values()], plan.checkpoint.tied):
        lost |= reasons
        for name, metric in metrics.items():
            del lost[name]
            waiting.add(missing[name], metric)
    waiting.finish()
    return _notes(lost, len(jobs))


def _in_metric(found: Staged | None) -> bool:
    return found is not None and found.record.metric_loss is not None


def sensitivities(
    plan: Plan, moments: GradientMoments, tokens: int, device: torch.device, told: Told
) -> dict[str, float]:
    """Nats a token that each calibrated job loses by relative squared error, to second order; those found alone."""
    jobs = {job.matrix.name: job for job in plan.jobs if job.calibrated}
    found: dict[str, float] = {}
    for metrics, _ in moments.backward([job.matrix for job in jobs.values()], plan.checkpoint.tied):
        for name, metric in metrics.items():
            weight = read_weight(plan.checkpoint, jobs[name].matrix, device).to(device).contiguous()
            (loss,) = unit_losses([weight], [metric], jobs[name].config)
            found[name] = loss / (2 * tokens)
        told(len(found), len(jobs))
    return found


def tune(
    plan: Plan, session: Session, staged: Mapping[str, Staged], staging: Staging, budget: Budget, told: Told, say: Say
) -> Tuned | None:
    """Tune the scales of what has been encoded so; None where there is nothing to tune. The session's model is lost."""
    checkpoint, model = plan.checkpoint, session.model
    modules = _modules(model, plan, checkpoint)
    encoded = {name: staged[name].encoded() for name in modules if staged[name].layout is not None}
    encoded = {name: matrix for name, matrix in encoded.items() if can_be_tuned(matrix)}
    if not encoded:
        return None
    tuning = Tuning(model, _vectors(model, checkpoint), session.ids, session.device)
    rights: dict[Any, torch.Tensor] = {}
    layers: dict[str, TunedLinear] = {}
    for name, matrix in encoded.items():
        spec, columns = matrix.layout.frame.right_u, matrix.layout.shape[1]
        if (spec, columns) not in rights:
            rights[spec, columns] = right_basis(spec, columns, session.device, computed_dtype(session.device))
        old: Any = model.get_submodule(modules[name])
        layers[name] = TunedLinear(matrix, rights[spec, columns], original(old, "bias"))
        model.set_submodule(modules[name], layers[name])
    bits = sum(log2(m.layout.levels) * m.codes.numel() for m in encoded.values())
    bits /= sum(m.codes.numel() for m in encoded.values())
    rate = next(rate for most, rate in RATES if bits <= most)
    state = staging.folder / STATE
    return tuning.run(layers, budget, rate=rate, seed=plan.config.seed, state=state, progress=told, say=say)


def _modules(model: Any, plan: Plan, checkpoint: Checkpoint) -> dict[str, str]:
    """The module of each calibrated job that is one linear layer's."""
    jobs = [job for job in plan.jobs if job.calibrated]
    names = {module: name for name, module in model.named_modules()}
    found = find_input_modules(model, [job.matrix for job in jobs], checkpoint.tied)
    alone = {name: inputs.modules[0] for name, inputs in found.items() if len(inputs.modules) == 1}
    return {name: names[module] for name, module in alone.items() if is_linear(module)}


def _vectors(model: Any, checkpoint: Checkpoint) -> dict[str, tuple[nn.Parameter, torch.dtype]]:
    """The parameters of one dimension, norms and biases, that are stored as they are; by the name of their tensor."""
    lookup, parameters = parameter_lookup(model), dict(model.named_parameters(remove_duplicate=False))
    found: dict[str, tuple[nn.Parameter, torch.dtype]] = {}
    for name, info in checkpoint.tensors.items():
        if len(info.shape) == 1 and info.dtype.is_floating_point:
            loaded = lookup(name)
            if loaded is not None and loaded.whole and loaded.name in parameters:
                found[name] = parameters[loaded.name], info.dtype
    return found


NOT_FOUND: Final = "they are no linear layer of a block that calibration could watch"


def _notes(lost: Mapping[str, str], total: int) -> tuple[str, ...]:
    """One sentence for each reason why matrices are encoded without data."""
    notes = []
    for reason in dict.fromkeys(lost.values()):
        names: Sequence[str] = [name for name, why in lost.items() if why == reason]
        examples = names[0] + (", ..." if len(names) > 1 else "")
        notes.append(f"{len(names)} of {total} matrices are encoded without calibration ({examples}): {reason}")
    return tuple(notes)
