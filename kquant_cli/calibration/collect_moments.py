"""One pass of a checkpoint over tokens: the second moments of the inputs of its matrices.

All windows go through the model as one batch, so that each weight is read once; a module's weights are in memory while
it runs (lazy_model.py). What grows is hidden states: windows * length * the widest layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from glob import escape
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kquant_cli.calibration.moments import InputGroup, InputStatistics
from kquant_cli.calibration.observer import Moments, Observer
from kquant_cli.calibration.text_source import open_source
from kquant_cli.calibration.tokens import windows
from kquant_cli.calibration.unavailable import INSIDE, StatisticsUnavailable, or_unavailable
from kquant_cli.checkpoint import Checkpoint, Matrix, select_matrices
from kquant_cli.checkpoint.selection import natural_key
from kquant_cli.devices import resolve_device
from kquant_cli.errors import KQuantError
from kquant_cli.hf.late_functions import late_functions
from kquant_cli.hf.quiet import quiet

if TYPE_CHECKING:
    from kquant_cli.calibration.input_modules import InputModules

FEWEST = 8  # tokens that must have reached a matrix: the moments of fewer say little


def collect(
    checkpoint: Checkpoint,
    names: Sequence[str],
    stats: str,
    *,
    seed: int,
    device: torch.device | str,
    tokens: int = 4096,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> InputStatistics:
    """Run `checkpoint` on random tokens (`stats` "random") or on the text file `stats`, and observe `names`.

    `names` are those of `Matrix.name`. `progress` is told how many of the modules to be watched an input has reached.

    Raises
    ------
    StatisticsUnavailable
        transformers cannot run the model, or none of the matrices is found in it.
    KQuantError
        The text file cannot be used.
    """
    device, source = resolve_device(device), open_source(stats)
    matrices = named_matrices(checkpoint, names)
    with late_functions():
        from kquant_cli.calibration.input_modules import find_input_modules, outside  # noqa: PLC0415
        from kquant_cli.calibration.lazy_model import load_lazy_model  # noqa: PLC0415 (transformers: seconds)

        model: Any = load_lazy_model(checkpoint, device)
    inputs_of = find_input_modules(model, matrices, checkpoint.tied)
    watched = {module: None for found in inputs_of.values() for module in found.modules}
    if not watched:
        reasons = {name: found.reason for name, found in inputs_of.items()}
        raise StatisticsUnavailable(f"{checkpoint.name}: {_notes(reasons, len(matrices))[0]}")
    observer = Observer()
    with (
        quiet(),
        or_unavailable(checkpoint.name),
        torch.no_grad(),
        observer.watching(watched, lambda: progress(len(observer.reached), len(watched))),
    ):
        ids = windows(source, checkpoint, model, tokens, seed).to(device)
        if outside(model.base_model, inputs_of.values()):
            _spare_the_head(model)
            model(input_ids=ids)
        else:
            model.base_model(input_ids=ids)
    groups, reasons = _grouped(matrices, inputs_of, observer, min(FEWEST, ids.numel()))
    if not groups:
        raise StatisticsUnavailable(f"{checkpoint.name}: {_notes(reasons, len(matrices))[0]}")
    notes = _notes(reasons, len(matrices))
    return InputStatistics(groups, source.description, ids.numel(), notes, tuple(reasons))


def named_matrices(checkpoint: Checkpoint, names: Sequence[str]) -> list[Matrix]:
    """The matrices of those names, in natural order."""
    try:
        known = {matrix.name: matrix for matrix in select_matrices(checkpoint).matrices}
    except KQuantError:  # none lies in blocks
        known = {}
    others = [escape(name) for name in names if name not in known]
    if others:
        known |= {matrix.name: matrix for matrix in select_matrices(checkpoint, include=others).matrices}
    return [known[name] for name in sorted(set(names), key=natural_key)]


def _spare_the_head(model: Any) -> None:
    """Compute the logits of one token a window. (By then the head's input has been observed, and its output is lost.)

    A head that classifies the last token would look for padding, of which there is none.
    """
    head = model.get_output_embeddings()
    if head is not None:
        head.register_forward_pre_hook(lambda _, args: (args[0][..., :1, :], *args[1:]) if args else None)
    for config in (model.config, model.config.get_text_config()):
        if getattr(config, "pad_token_id", None) is None:
            config.pad_token_id = -1


def _grouped(
    matrices: Sequence[Matrix], inputs_of: Mapping[str, InputModules], observer: Observer, fewest: int
) -> tuple[tuple[InputGroup, ...], dict[str, str]]:
    """The matrices that the same inputs reached, in groups; and why others have none."""
    members: dict[tuple[int, ...], list[str]] = {}
    reasons: dict[str, str] = {}
    for matrix in matrices:
        found = inputs_of[matrix.name]
        inputs = tuple(sorted({number for module in found.modules for number in observer.reached.get(module, ())}))
        reason = found.reason or _unfit(matrix, [observer.moments[number] for number in inputs], fewest)
        if reason:
            reasons[matrix.name] = reason
        else:
            members.setdefault(inputs, []).append(matrix.name)
    groups = (InputGroup(tuple(names), _mean([observer.moments[n] for n in key])) for key, names in members.items())
    return tuple(groups), reasons


def _unfit(matrix: Matrix, seen: Sequence[Moments], fewest: int) -> str:
    """Why what was seen says nothing of the matrix's input; empty if it does."""
    if any(len(moments.sums) != matrix.shape[1] for moments in seen):
        return INSIDE
    if sum(moments.rows for moments in seen) < fewest:
        return f"fewer than {fewest} tokens were seen to reach them"
    if not torch.isfinite(_mean(seen)).all():
        return "their inputs were not finite"
    return ""


def _mean(seen: Sequence[Moments]) -> Tensor:
    """E[y_j^2] (in_features,) float64 over all that was seen."""
    return torch.stack([moments.sums for moments in seen]).sum(0) / sum(moments.rows for moments in seen)


def _notes(reasons: Mapping[str, str], total: int) -> tuple[str, ...]:
    """One sentence for each reason why matrices have no statistics."""
    notes = []
    for reason in dict.fromkeys(reasons.values()):
        names = [name for name, why in reasons.items() if why == reason]
        examples = names[0] + (", ..." if len(names) > 1 else "")
        notes.append(f"{len(names)} of {total} matrices have no statistics of their inputs ({examples}): {reason}")
    return tuple(notes)
