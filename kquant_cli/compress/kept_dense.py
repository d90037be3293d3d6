"""Matrices that the rules of names and shapes select, and that stay dense all the same: each is named, with the reason.

A model may compute with a weight itself, past its layer (hf/weight_uses.py), and a matrix may be so small that codes,
codebook and scales take more bytes than its weights.
"""

from __future__ import annotations

from collections.abc import Sequence

from kquant_cli.checkpoint import Checkpoint, Matrix
from kquant_cli.hf.weight_uses import uses_of

SHOWN = 4  # names in a note


def without_used_weights(checkpoint: Checkpoint, matrices: Sequence[Matrix]) -> tuple[list[Matrix], tuple[str, ...]]:
    """The matrices whose weight nothing but their layer computes with, and a note on the others.

    transformers is imported only where its code for the architecture gives a reason to look.
    """
    also: dict[str, list[str]] = {}  # further names of a tied tensor
    for dropped, kept in checkpoint.tied.items():
        also.setdefault(kept, []).append(dropped)
    names = {name: m.tensor for m in matrices for name in (m.tensor, *also.get(m.tensor, ()))}
    uses = uses_of(checkpoint.config)
    layers = {use.name for use in uses}
    doubtful = [name for name in names if name.split(".")[-2:][0] in layers]
    if not doubtful:
        return list(matrices), ()
    from kquant_cli.hf.weight_probe import used_past_forward  # noqa: PLC0415 - imports transformers

    found = used_past_forward(checkpoint.path, doubtful, uses)
    used = {names[name]: by for name, by in found.items()}
    notes = []
    for by in sorted(set(used.values())):
        those = [matrix.name for matrix in matrices if used.get(matrix.tensor) == by]
        reason = f"transformers' {by} computes with their weights itself, past the layers' own forward"
        notes.append(f"{names_of(those)} {stay(those)} dense: {reason}")
    return [matrix for matrix in matrices if matrix.tensor not in used], tuple(notes)


def names_of(names: Sequence[str]) -> str:
    """The names in words, the first few of many."""
    shown, more = names[:SHOWN], len(names) - SHOWN
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")


def stay(names: Sequence[str]) -> str:
    """The verb for so many."""
    return "stays" if len(names) == 1 else "stay"
