"""How much the model's predictions suffer from an error in each matrix.

    sensitivity of a matrix = KL(P || P') / eps

P the model's next-token distributions, P' the same when this one matrix has noise (noise.py) of relative squared error
eps, the mean over tokens in nats. For small errors the KL is linear in eps, and those of several matrices add up
(arXiv 2411.17525, linearity theorem), so that a matrix encoded with relative squared error e costs sensitivity * e.
What stands in for the KL where a model has no such distributions is in output_change.py: the unit then differs, but it
is the same for all matrices of a model.

A single draw of the noise is off by a tenth to a half (standard deviation on SmolLM2, query projections the worst), as
few of its directions matter. So the tokens are cut into DRAWS parts with a draw each, which costs no more.

One forward pass a matrix, begun at the matrix's block (replay.py), in float32: the model is in memory with 4 bytes a
parameter. A matrix that is not certainly found in the loaded model, or whose noise reached no output (an expert that no
token chose), gets the geometric mean of the others', and a note says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

import torch

from kquant_cli.calibration.noise import noise
from kquant_cli.calibration.output_change import Reference
from kquant_cli.calibration.parameters import MatrixView, find_matrices
from kquant_cli.calibration.replay import Replay
from kquant_cli.calibration.tokens import DATA_FREE, model_inputs
from kquant_cli.checkpoint import Checkpoint, Matrix
from kquant_cli.errors import KQuantError, is_shortage
from kquant_cli.hf.failures import FAILURES, first_line
from kquant_cli.hf.loading import LoadedModel, load_dense, to_own_memory
from kquant_cli.hf.model_class import named_class

__all__ = ["DATA_FREE", "DRAWS", "EPS", "TOKENS", "measure_sensitivity", "perturbed"]

TOKENS: Final = 512
DRAWS: Final = 4
EPS: Final = 1e-3  # less than any encoder of up to 5 bits leaves, and far above the rounding of float32
NOTHING: Final = 1e-8  # of the largest sensitivity: what the rounding of float32 can make where the noise does nothing
NO_TOKEN: Final = -1

Told = Callable[[str, int, int], None]


def measure_sensitivity(
    checkpoint: Checkpoint,
    matrices: Sequence[Matrix],
    source: str,
    *,
    seed: int,
    device: torch.device | str,
    channel_scales: Mapping[str, torch.Tensor] | None = None,
    tokens: int = TOKENS,
    eps: float = EPS,
    progress: Told = lambda _name, _done, _all: None,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, float]:
    """The sensitivity of each matrix by its name: finite, above zero, in nats a token per relative squared error.

    `source` is "data-free" (seeded random token ids) or a text file. `channel_scales` has, by matrix name, the d
    (in_features,) by which its columns are multiplied before they are encoded; ones where a matrix has none. `progress`
    is told (name, done, all) after each matrix, `say` sentences that the user should read.

    Raises
    ------
    KQuantError
        transformers cannot load the checkpoint, the text is of no use, or the model computes numbers that are not
        finite.
    """
    loaded, scales = _load(checkpoint, device), channel_scales or {}
    checkpoint.require_unchanged()
    with torch.no_grad():
        views = find_matrices(loaded.model, checkpoint, matrices)
        parts = [_Part.of(loaded, inputs) for inputs in model_inputs(loaded, source, tokens, seed, DRAWS)]
        found: dict[str, float] = {}
        for done, matrix in enumerate(matrices, start=1):
            if (where := views[matrix.name]) is not None:
                value = _sensitivity(parts, where, scales.get(matrix.name), eps, f"{seed} {matrix.name}")
                if not math.isfinite(value):
                    raise KQuantError(
                        f"{loaded.path}: with small errors in {matrix.name!r} the model computes numbers that are not "
                        f"finite; leave it out with --exclude {matrix.tensor}"
                    )
                found[matrix.name] = value
            progress(matrix.name, done, len(matrices))
        zero = {name for name in found if (where := views[name]) is not None and not where.view.any()}
    return filled([matrix.name for matrix in matrices], found, zero, say)


class _Part:
    """A part of the tokens: the first pass, and what it gave."""

    def __init__(self, replay: Replay, reference: Reference) -> None:
        self.replay, self.reference = replay, reference

    @classmethod
    def of(cls, loaded: LoadedModel, inputs: Mapping[str, torch.Tensor]) -> _Part:
        try:
            replay = Replay(loaded.model, inputs)
        except FAILURES as error:
            if is_shortage(error):
                raise
            reason = first_line(error, type(error).__name__)
            raise KQuantError(
                f"{loaded.path}: {type(loaded.model).__name__} does not run on token ids alone ({reason}), so its "
                f"sensitivities cannot be measured: give a whole number of bits"
            ) from error
        return cls(replay, Reference.of(replay.output, loaded.path))

    def divergence(self, where: MatrixView, error: torch.Tensor) -> float:
        """How far the output moves when `error` is added to the matrix."""
        with perturbed(where.view, error):
            moved = self.replay.run(where.blocks)
        return self.reference.divergence(moved)


def _sensitivity(
    parts: Sequence[_Part], where: MatrixView, scale: torch.Tensor | None, eps: float, label: str
) -> float:
    """Divergence per eps, the mean over the parts."""
    draws = (noise(where.view, eps, scale, f"{label} {draw}") for draw in range(len(parts)))
    return math.fsum(part.divergence(where, error) for part, error in zip(parts, draws, strict=True)) / len(parts) / eps


@contextmanager
def perturbed(weight: torch.Tensor, error: torch.Tensor) -> Iterator[None]:
    """Within it, `weight` is weight + error, in place; afterwards what it was, bit for bit."""
    own = weight.clone()
    try:
        weight.add_(error)
        yield
    finally:
        weight.copy_(own)


def filled(
    names: Sequence[str], found: Mapping[str, float], zero: Collection[str], say: Callable[[str], None]
) -> dict[str, float]:
    """`found` with the others' geometric mean where nothing was found, and next to nothing for `zero` matrices."""
    largest = max(found.values(), default=0.0)
    least = NOTHING * largest if largest > 0 else 1.0
    heard = {name: value for name, value in found.items() if value > least and name not in zero}
    mean = math.exp(math.fsum(map(math.log, heard.values())) / len(heard)) if heard else 1.0
    lost = [name for name in names if name not in found]
    silent = [name for name in names if name in found and name not in heard and name not in zero]
    for few, why in ((lost, "transformers does not load them as they are stored"), (silent, "no token reached them")):
        if few:
            shown = ", ".join(few[:3]) + (", ..." if len(few) > 3 else "")
            say(f"the sensitivities of {len(few)} matrices are taken as the others' mean, since {why}: {shown}")
    return {name: heard.get(name, least if name in zero else mean) for name in names}


def _load(checkpoint: Checkpoint, device: torch.device | str) -> LoadedModel:
    """The model with the head that the checkpoint was saved with, in float32; a causal one where it names none."""
    named = named_class(checkpoint.config.get("architectures"))
    classes = ["AutoModelForCausalLM", "AutoModel"] if named is None else [named.__name__]
    for auto_class in classes[:-1]:
        try:
            return _ready(load_dense(checkpoint.path, auto_class=auto_class, device=device, dtype=torch.float32))
        except KQuantError as error:
            if is_shortage(error):
                raise
            continue
    return _ready(load_dense(checkpoint.path, auto_class=classes[-1], device=device, dtype=torch.float32))


def _ready(loaded: LoadedModel) -> LoadedModel:
    """Without gradients, without a cache of keys and values, and for several sequences at a time.

    A decoder that classifies looks for the last token that is no padding, and refuses a batch where its config names
    none; the id that it is given here is that of no token, so the last one counts.
    """
    loaded.model.requires_grad_(False)
    to_own_memory(loaded.model)
    for config in {id(c): c for c in (loaded.model.config, loaded.model.config.get_text_config())}.values():
        if getattr(config, "use_cache", None):
            config.use_cache = False
        if getattr(config, "pad_token_id", None) is None:
            config.pad_token_id = NO_TOKEN
    return loaded
