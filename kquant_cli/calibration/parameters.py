"""Where the matrices of a checkpoint are in the model that transformers has loaded.

Which parameter a tensor became, transformers itself says (hf/parameter_names.py); of one that it fuses from several
(experts into (experts, rows, columns), projections put together) the rows are those that hold the stored matrix, entry
for entry. A parameter that holds other values than the stored ones is not taken.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import transformers

from kquant_cli.checkpoint import Checkpoint, Matrix
from kquant_cli.hf.block_names import block_of
from kquant_cli.hf.parameter_names import parameter_lookup


@dataclass(frozen=True)
class MatrixView:
    """`view` (out_features, in_features) into the model's parameter, and the blocks that use it (None: no block)."""

    view: torch.Tensor
    blocks: frozenset[str | None]


def find_matrices(
    model: transformers.PreTrainedModel, checkpoint: Checkpoint, matrices: Sequence[Matrix]
) -> dict[str, MatrixView | None]:
    """By its name each matrix in the loaded `model`; None where it is nowhere, or could be at several rows."""
    parameters, parameter_of = dict(model.named_parameters(remove_duplicate=False)), parameter_lookup(model)
    blocks: dict[int, set[str | None]] = {}
    for name, parameter in parameters.items():
        blocks.setdefault(id(parameter), set()).add(block_of(name))
    views: dict[str, MatrixView | None] = dict.fromkeys(matrix.name for matrix in matrices)
    for matrix in matrices:
        loaded = parameter_of(matrix.tensor)
        if loaded is None or loaded.name not in parameters:
            continue
        parameter = parameters[loaded.name]
        stored = checkpoint.read(matrix.tensor).to(parameter)
        found: list[torch.Tensor]
        if loaded.whole:
            found = [parameter] if torch.equal(parameter, stored) else []
        else:
            found = list(_runs_of_rows(stored, parameter))
        if len(found) == 1:
            view = found[0].T if matrix.transposed else found[0]
            views[matrix.name] = MatrixView(view, frozenset(blocks[id(parameter)]))
    return views


def _runs_of_rows(stored: torch.Tensor, parameter: torch.Tensor) -> Iterator[torch.Tensor]:
    """The views of `parameter` (..., rows, columns), or of its transpose, that are equal to `stored`."""
    rows, columns = stored.shape
    if parameter.ndim < 2:
        return
    sheets = parameter.view(-1, *parameter.shape[-2:])
    for turned in (sheets, sheets.mT):
        if turned.shape[2] != columns or turned.shape[1] < rows:
            continue
        starts = (turned[:, : turned.shape[1] - rows + 1, 0] == stored[0, 0]).nonzero().tolist()
        views = (turned[sheet, row : row + rows] for sheet, row in starts)
        yield from (view for view in views if torch.equal(view, stored))
