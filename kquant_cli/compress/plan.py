"""The plan of a run: which matrices, with which settings, into how many bytes; all before the first one is written."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from kquant_cli.allocation import possible_levels
from kquant_cli.bundle.writer import RESERVED
from kquant_cli.calibration import OWN, describe_source, is_causal
from kquant_cli.checkpoint import Checkpoint, Matrix, matches, select_matrices, token_matrices
from kquant_cli.checkpoint.file_roles import is_asked_for
from kquant_cli.compress.kept_dense import names_of, stay, without_used_weights
from kquant_cli.config import DENSE, CompressConfig, EncoderConfig, settings_of_matrix, settings_of_tokens
from kquant_cli.encoders import check_bases, encoded_bytes, rounds_by_threads, takes_metric
from kquant_cli.errors import KQuantError
from kquant_cli.hf.block_names import block_of

CHANNEL_SCALE_BYTES = 2  # of an entry: float16
WORDS = ("auto", "own", "random", "none")  # of `calibration`, what is no file


@dataclass(frozen=True)
class Job:
    """A matrix and the settings it is encoded with."""

    matrix: Matrix
    config: EncoderConfig
    scale_owner: str | None = None  # the matrix that stores the channel scale which this one is encoded with
    calibrated: bool = False  # whether it is to be encoded in the metric of a calibration on text

    @property
    def nbytes(self) -> int:
        """Bytes that its encoding takes, a channel scale that it stores included; about, for an average of bits."""
        own = CHANNEL_SCALE_BYTES * self.matrix.shape[1] if self.scale_owner == self.matrix.name else 0
        if self.config.is_average:
            return math.ceil(self.config.bits * self.weights / 8)
        return encoded_bytes(self.matrix.shape, self.config, in_metric=self.calibrated) + own

    @property
    def kind(self) -> tuple[tuple[int, int], EncoderConfig, bool, bool]:
        """What its bytes depend on: matrices alike in this take the same."""
        return self.matrix.shape, self.config, self.scale_owner == self.matrix.name, self.calibrated

    @property
    def weights(self) -> int:
        """Number of its entries."""
        return self.matrix.shape[0] * self.matrix.shape[1]


@dataclass(frozen=True)
class Plan:
    """What a run will do, found out before the first byte is written."""

    checkpoint: Checkpoint
    config: CompressConfig
    jobs: tuple[Job, ...]
    notes: tuple[str, ...]
    scales_known: bool = False  # whether the jobs say which matrices store a channel scale
    decided: Mapping[str, str] = field(default_factory=dict)  # what is otherwise than the settings say, by their key

    @property
    def is_measured(self) -> bool:
        """Whether the model is run: for channel scales, a calibration, or the levels of an average of bits."""
        return self.config.calibration != "none" or any(job.config.is_average for job in self.jobs)

    @property
    def depends_on_threads(self) -> bool:
        """Whether another number of threads of a CPU may give other bytes."""
        kinds = {(job.matrix.shape, job.config): None for job in self.jobs}
        return self.is_measured or any(rounds_by_threads(shape, config) for shape, config in kinds)

    @property
    def source_bytes(self) -> int:
        """Bytes of the source's tensors."""
        return sum(info.nbytes for info in self.checkpoint.tensors.values())

    @property
    def parameters(self) -> int:
        """Entries of the source's tensors."""
        return sum(info.numel for info in self.checkpoint.tensors.values())

    @property
    def weights(self) -> int:
        """Entries of the matrices that will be encoded."""
        return sum(job.weights for job in self.jobs)

    @property
    def estimated_bytes(self) -> int:
        """Bytes of the bundle's tensors, if no matrix is kept dense."""
        dense = self.source_bytes - sum(self.checkpoint.tensors[j.matrix.tensor].nbytes for j in self.jobs)
        return dense + sum(job.nbytes for job in self.jobs)

    @property
    def unknown_bytes(self) -> int:
        """Bytes that channel scales may take beside, at most: which inputs are shared is known once they are seen."""
        if self.scales_known or self.config.calibration == "none":
            return 0
        jobs = (job for job in self.jobs if not job.calibrated and not job.matrix.of_tokens)
        return sum(CHANNEL_SCALE_BYTES * job.matrix.shape[1] for job in jobs)


def make_plan(checkpoint: Checkpoint, config: CompressConfig) -> Plan:
    """Select the matrices and settle their settings.

    Raises
    ------
    KQuantError
        No matrix is selected, a pattern matches nothing, rules that fit one matrix do not go together, a basis cannot
        have a size that it would need, or a text is not there; `head_bits` are given for a model without a head.
    """
    wanted = config.head_bits != DENSE
    asked = config.head_bits != CompressConfig.model_fields["head_bits"].default
    if wanted and asked and not token_matrices(checkpoint.tensors):
        raise KQuantError(
            f"`head_bits` is {config.head_bits}, and {checkpoint.path} has no input embedding or output head under a "
            f"name that kquant knows, such as embed_tokens or lm_head; leave it out, or name the matrix with --include"
        )
    selection = select_matrices(checkpoint, config.include, config.exclude, of_tokens=wanted)
    matrices, used = without_used_weights(checkpoint, selection.matrices)
    for rule in config.layers:
        if not any(fnmatchcase(matrix.name, rule.match.removesuffix(".weight")) for matrix in selection.matrices):
            raise KQuantError(
                f"layers: the pattern {rule.match!r} fits no matrix to be encoded; expected one for names such as "
                f"{selection.matrices[0].name!r}"
            )
    for pattern in config.copy_files:
        if not any(is_asked_for(file.as_posix(), [pattern]) for file in checkpoint.other_files):
            raise KQuantError(
                f"`copy_files`: the pattern {pattern!r} fits no file of {checkpoint.path} that can be copied; expected "
                f"one for names such as finetune.json, and not for the weights"
            )
    made = [_job(matrix, config, checkpoint) for matrix in matrices]
    growing = _that_grow(made, checkpoint, config)
    jobs = tuple(job for job in made if job.matrix.name not in growing)
    kept = used + _on_growing([j.matrix.name for j in made if j.matrix.name in growing and not j.matrix.of_tokens])
    if not jobs:
        raise KQuantError(f"{checkpoint.path} has no matrix to encode: {'; '.join(kept)}")
    for shape, settings in {(job.matrix.shape, job.config): job.matrix for job in jobs}:
        check_bases(shape, settings.model_copy(update={"levels": 2}) if settings.is_average else settings)
    describe_texts(config)
    require_writer(checkpoint, config)
    require_reader(jobs, config)
    taken = [str(name) for name in checkpoint.other_files if name.as_posix() in RESERVED]
    lost = (f"the source's {', '.join(taken)} is not copied: a bundle has its own",) if taken else ()
    return Plan(checkpoint, config, jobs, selection.notes + kept + lost)


def _job(matrix: Matrix, config: CompressConfig, checkpoint: Checkpoint) -> Job:
    if matrix.of_tokens:
        settings = settings_of_tokens(config, matrix.name)
        if settings is not None:
            return Job(matrix, settings)
    settings = settings_of_matrix(config, matrix.name)
    on_text = config.calibration not in ("random", "none") and is_causal(checkpoint.config)
    calibrated = on_text and takes_metric(settings) and block_of(matrix.name) is not None
    return Job(replace(matrix, of_tokens=False), settings, calibrated=calibrated)


def _that_grow(jobs: Iterable[Job], checkpoint: Checkpoint, config: CompressConfig) -> set[str]:
    """The names of the matrices that would not take fewer bytes encoded, but for those that a pattern asks for.

    Of an average with the fewest levels that they may get, and with the channel scale that they may store.
    """
    least: dict[Any, int] = {}  # few matrices of a model differ in what counts here
    found = set()
    for job in jobs:
        if (key := (job.kind, job.matrix.of_tokens)) not in least:
            scaled = config.calibration != "none" and not job.calibrated and not job.matrix.of_tokens
            least[key] = _least_bytes(job) + (CHANNEL_SCALE_BYTES * job.matrix.shape[1] if scaled else 0)
        if least[key] >= checkpoint.tensors[job.matrix.tensor].nbytes and not matches(
            job.matrix.tensor, config.include
        ):
            found.add(job.matrix.name)
    return found


def _least_bytes(job: Job) -> int:
    if not job.config.is_average:
        return job.nbytes
    return replace(job, config=job.config.model_copy(update={"levels": min(possible_counts(job.config))})).nbytes


def possible_counts(config: EncoderConfig) -> tuple[int, ...]:
    """The level counts that the encoder of the settings has."""
    return possible_levels(lambda levels: config.refusal(levels) is None)


def _on_growing(names: Sequence[str]) -> tuple[str, ...]:
    why = "encoded, with codebook and scales, they would take more bytes (--include encodes them)"
    return (f"{names_of(names)} {stay(names)} dense: {why}",) if names else ()


def require_writer(checkpoint: Checkpoint, config: CompressConfig) -> None:
    """KQuantError where the model is to write its own text, and is none that can."""
    if config.calibration == OWN and not is_causal(checkpoint.config):
        raise KQuantError(
            f"{checkpoint.name}: `calibration` is own, but this is no causal language model, which could write text; "
            f"give --calibration random, none, or leave it out"
        )


def require_reader(jobs: Iterable[Job], config: CompressConfig) -> None:
    """KQuantError where the model is to write text, and no matrix is encoded by what reads it."""
    if config.calibration == OWN and not any(job.calibrated for job in jobs):
        raise KQuantError(
            f"`calibration` is own, which the encoder {config.encoder}, so set, has no use for; give --calibration "
            f"random or none, or choose --encoder annealed with a side other than input"
        )


def describe_texts(config: CompressConfig) -> dict[str, str]:
    """The text that the settings name: name and SHA-256; KQuantError when it cannot be used."""
    named = config.calibration
    return {} if named in WORDS else {"calibration": describe_source(named)}


def default_output(checkpoint: Checkpoint, config: CompressConfig) -> Path:
    """`bundles/<model>-<encoder>-<bits>bit`, or `-<K>levels`."""
    model = checkpoint.name.rstrip("/").rpartition("/")[2] or "model"
    size = f"{config.bits}bit" if config.levels is None else f"{config.levels}levels"
    return Path("bundles") / f"{model}-{config.encoder}-{size}"
