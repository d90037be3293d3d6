"""Where the matrices of a checkpoint are in the model that transformers made of it.

transformers renames, prefixes, ties and fuses what it loads. So a place is taken only when it holds the stored matrix,
entry for entry: first the parameter of the same name, with or without the base model's prefix, then, row by row, those
of the same block number (experts that transformers 5 fuses into (experts, rows, columns), projections put together).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import transformers

from kquant_cli.calibration.replay import block_of
from kquant_cli.checkpoint import Checkpoint, Matrix


@dataclass(frozen=True)
class Place:
    """`view` (out_features, in_features) into the model's parameter, and the blocks that use it (None: no block)."""

    view: torch.Tensor
    blocks: frozenset[str | None]


def find_places(
    model: transformers.PreTrainedModel, checkpoint: Checkpoint, matrices: Sequence[Matrix]
) -> dict[str, Place | None]:
    """By matrix name its place in the loaded `model`; None where it is nowhere, or could be at several places."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    blocks: dict[int, set[str | None]] = {}
    for name, parameter in parameters.items():
        blocks.setdefault(id(parameter), set()).add(block_of(name))
    places: dict[str, Place | None] = {}
    for matrix in matrices:
        stored = checkpoint.read(matrix.tensor)
        named = _by_name(stored, matrix.tensor, parameters, model.base_model_prefix)
        found = [named] if named is not None else list(_by_rows(stored, matrix.tensor, parameters))
        places[matrix.name] = None
        if len(found) == 1:
            owner, view = found[0]
            places[matrix.name] = Place(view.T if matrix.transposed else view, frozenset(blocks[id(owner)]))
    return places


_Found = tuple[torch.Tensor, torch.Tensor]  # a parameter, and its view that equals the stored tensor


def _by_name(stored: torch.Tensor, tensor: str, parameters: Mapping[str, torch.Tensor], prefix: str) -> _Found | None:
    for name in (tensor, f"{prefix}.{tensor}", tensor.removeprefix(f"{prefix}.")):
        parameter = parameters.get(name)
        if parameter is not None and torch.equal(parameter, stored.to(parameter)):
            return parameter, parameter
    return None


def _by_rows(stored: torch.Tensor, tensor: str, parameters: Mapping[str, torch.Tensor]) -> Iterator[_Found]:
    """Wherever `stored` is a run of rows of a parameter of the same block number, or of its transpose."""
    rows, columns = stored.shape
    for parameter in {id(p): p for n, p in parameters.items() if _number(n) == _number(tensor)}.values():
        if parameter.ndim < 2:
            continue
        same = stored.to(parameter)
        sheets = parameter.view(-1, *parameter.shape[-2:])
        for turned in (sheets, sheets.mT):
            if turned.shape[2] != columns or turned.shape[1] < rows:
                continue
            starts = (turned[:, : turned.shape[1] - rows + 1, 0] == same[0, 0]).nonzero().tolist()
            views = (turned[sheet, row : row + rows] for sheet, row in starts)
            yield from ((parameter, view) for view in views if torch.equal(view, same))


def _number(name: str) -> str | None:
    """The number of the block; None outside of all."""
    block = block_of(name)
    return None if block is None else block.rpartition(".")[2]
