"""Which matrices are encoded: decided from names and shapes, so that no architecture needs a table of its own.

By default every floating-point `*.weight` with two dimensions inside the blocks (a number among the name's components),
but for `KEPT_DENSE`, norms (some have a weight for each head, which is two-dimensional: Cohere's q_norm) and heads that
are numbered themselves (MusicGen's lm_heads.0). Embeddings, other norms, project_in/out, poolers and heads have no
number in their name, so they stay dense, but for those of a language model's tokens where these are asked for
(token_matrices.py). `--include` patterns add any other 2-D `*.weight`, `--exclude` patterns take away; exclude wins.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from kquant_cli.checkpoint.checkpoint import Checkpoint
from kquant_cli.checkpoint.stored_tensor import TensorLike
from kquant_cli.checkpoint.token_matrices import has_decoder_beside_encoder, is_large, token_matrices
from kquant_cli.errors import KQuantError
from kquant_cli.suggestions import near

ENDING = ".weight"
KEPT_DENSE = (
    *("*.gate", "*.gate.*", "*router*", "*shared_expert_gate*"),  # they choose the experts: few weights, large effect
    *("*embed*", "*relative_attention_bias*"),  # tables: rows are looked up, not multiplied
    *(
        "classifier.*",
        "*.classifier.*",
        "score.*",
        "*.score.*",
        "lm_head.*",
        "*.lm_head.*",
        "*pooler*",
    ),  # numbered heads
)
NORM = re.compile(r"(?:^|_)(?:[a-z]*norm(?:s|alization)?|ln|rms|bn)\d*(?:_|$)", re.IGNORECASE)  # layernorm_before
HEADS = re.compile(r"(?:^|_)(?:heads?|classifiers?)$")  # lm_heads, class_head: where a number follows
CONV1D_MODULES = frozenset(("c_attn", "c_fc", "c_proj", "q_attn"))


@dataclass(frozen=True)
class Matrix:
    """A weight to encode: `name` is the module's, `tensor` the stored one's; `shape` = (out_features, in_features).

    `transposed`: stored as (in_features, out_features), as GPT-2's Conv1D does. `of_tokens`: the input embedding or the
    output head, encoded because these are, and not because a pattern asks for it.
    """

    name: str
    tensor: str
    shape: tuple[int, int]
    transposed: bool
    of_tokens: bool = False


@dataclass(frozen=True)
class Selection:
    """The matrices to encode, in natural order of their names, and sentences that the user should read."""

    matrices: tuple[Matrix, ...]
    notes: tuple[str, ...]


def select_matrices(
    checkpoint: Checkpoint, include: Sequence[str] = (), exclude: Sequence[str] = (), *, of_tokens: bool = False
) -> Selection:
    """Apply the rules. Patterns are those of fnmatch, matched with the tensor's name and the module's.

    `of_tokens`: with the input embedding and the output head.

    Raises KQuantError for a pattern that matches nothing, and when no matrix is selected.
    """
    tensors = checkpoint.tensors
    eligible = [name for name, tensor in tensors.items() if _is_matrix(name, tensor)]
    for pattern in include:
        if not _any_match(eligible, pattern):
            raise _useless_include(pattern, checkpoint, eligible)
    for pattern in exclude:
        if not _any_match([*tensors, *checkpoint.tied], pattern):
            raise KQuantError(f"the exclude pattern {pattern!r} matches no tensor{_nearest(pattern, eligible)}")
    heads = [name for name in eligible if _is_numbered_head(name)]
    default = {name for name in eligible if _in_blocks(name) and not matches(name, KEPT_DENSE) and not _is_norm(name)}
    default -= set(heads)
    selected = [name for name in eligible if (name in default or matches(name, include)) and not matches(name, exclude)]
    transposed = _conv1d(tensors)
    matrices = [_matrix(name, tensors[name].shape, name in transposed) for name in selected]
    notes = _notes(tensors) + _kept_heads([name for name in heads if name not in selected])
    if of_tokens:
        found = [n for n in token_matrices(tensors) if is_large(tensors[n]) and n not in selected]
        also = {kept: dropped for dropped, kept in checkpoint.tied.items()}
        found = [name for name in found if not matches(name, exclude) and not matches(also.get(name, ""), exclude)]
        if has_decoder_beside_encoder(checkpoint.config):
            notes += _kept_beside_encoder(found)
        else:
            matrices += [replace(_matrix(name, tensors[name].shape, False), of_tokens=True) for name in found]
    if not matrices:
        why = (
            "the exclude patterns leave none" if exclude else "no 2-D floating-point weight lies inside numbered blocks"
        )
        raise KQuantError(f"{checkpoint.path} has no matrix to encode: {why}; name some with --include")
    return Selection(tuple(sorted(matrices, key=lambda matrix: natural_key(matrix.name))), notes)


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether any pattern matches the tensor `name`, with or without its ending `.weight`."""
    module = name.removesuffix(ENDING)
    return any(fnmatchcase(name, pattern) or fnmatchcase(module, pattern) for pattern in patterns)


def natural_key(name: str) -> list[tuple[bool, int, str]]:
    """A sorting key that puts block 2 before block 10."""
    return [(not part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in re.split(r"(\d+)", name)]


def _is_matrix(name: str, tensor: TensorLike) -> bool:
    return name.endswith(ENDING) and len(tensor.shape) == 2 and tensor.numel > 0 and tensor.dtype.is_floating_point


def _in_blocks(name: str) -> bool:
    return any(part.isdecimal() for part in name.split("."))


def _is_norm(name: str) -> bool:
    """Whether the name of the module that has the weight is that of a norm."""
    parts = [part for part in name.removesuffix(ENDING).split(".") if not part.isdecimal()]
    return bool(parts) and NORM.search(parts[-1]) is not None


def _is_numbered_head(name: str) -> bool:
    """Whether a number stands only for one of several heads, or the module is called a head in a block (DeepSeek)."""
    *path, last = name.removesuffix(ENDING).split(".")
    return last == "head" or (last.isdecimal() and bool(path) and HEADS.search(path[-1]) is not None)


def _matrix(tensor: str, shape: tuple[int, ...], transposed: bool) -> Matrix:
    rows, columns = shape
    return Matrix(tensor.removesuffix(ENDING), tensor, (columns, rows) if transposed else (rows, columns), transposed)


def _kept_beside_encoder(names: Sequence[str]) -> tuple[str, ...]:
    kept = " and ".join(sorted(name.removesuffix(ENDING) for name in names))
    stay = "stays" if len(names) == 1 else "stay"
    return (f"{kept} {stay} dense: tables of a model with an encoder and a decoder are not encoded",) if names else ()


def _kept_heads(names: Sequence[str]) -> tuple[str, ...]:
    if not names:
        return ()
    first, more = names[0].removesuffix(ENDING), len(names) - 1
    others = f" and {more} more stay" if more else " stays"
    return (f"{first}{others} dense, as output heads do (--include encodes them)",)


def _conv1d(tensors: Mapping[str, TensorLike]) -> set[str]:
    """The weights stored as (in, out).

    A bias has out_features entries: a `c_attn.weight` whose second size, and not its first, is that of its bias gives
    its stack of blocks away as GPT-2's kind. Square matrices there are transposed too, which no shape could tell.
    """
    stacks = set()
    for name, tensor in tensors.items():
        bias = tensors.get(name.removesuffix(ENDING) + ".bias")
        if name.endswith("c_attn.weight") and len(tensor.shape) == 2 and bias is not None:
            rows, columns = tensor.shape
            if bias.shape == (columns,) and rows != columns:
                stacks.add(_stack(name))
    return {
        name
        for name, tensor in tensors.items()
        if _is_matrix(name, tensor) and _stack(name) in stacks and name.split(".")[-2] in CONV1D_MODULES
    }


def _stack(name: str) -> str:
    """What comes before the number of the block: `transformer.h` for `transformer.h.3.mlp.c_fc.weight`."""
    return re.split(r"(?:^|\.)\d+\.", name, maxsplit=1)[0]


def _notes(tensors: Mapping[str, TensorLike]) -> tuple[str, ...]:
    """Expert weights that are stored stacked, not as 2-D `*.weight`, stay dense: to be said with their share."""
    floats = {name: tensor for name, tensor in tensors.items() if tensor.dtype.is_floating_point}
    experts = {name: tensor.numel for name, tensor in floats.items() if _is_stack_of_experts(name, tensor)}
    if not experts:
        return ()
    share = sum(experts.values()) / sum(tensor.numel for tensor in floats.values())
    first = min(experts, key=natural_key)
    return (
        f"{share:.1%} of the model's parameters stay dense: {len(experts)} tensors hold several experts each "
        f"({first} {list(tensors[first].shape)}, ...), and such stacks are not encoded",
    )


def _is_stack_of_experts(name: str, tensor: TensorLike) -> bool:
    """Whether a tensor holds weights of several experts: usually 3-D, in some models 2-D and not named `*.weight`."""
    if len(tensor.shape) < 2 or _is_matrix(name, tensor) or name.endswith("bias"):
        return False
    return _in_blocks(name) and re.search(r"expert|moe", name) is not None


def _any_match(names: Iterable[str], pattern: str) -> bool:
    return any(matches(name, (pattern,)) for name in names)


def _useless_include(pattern: str, checkpoint: Checkpoint, eligible: Sequence[str]) -> KQuantError:
    """Why an include pattern adds nothing: the name is tied to another, or no matrix, or there is no such name."""
    for dropped, kept in checkpoint.tied.items():
        if matches(dropped, (pattern,)):
            return KQuantError(
                f"{dropped!r} (pattern {pattern!r}) is tied to {kept!r} and stored under that name: include that"
            )
    for name, tensor in checkpoint.tensors.items():
        if matches(name, (pattern,)):
            return KQuantError(
                f"the include pattern {pattern!r} matches no matrix: {name!r} has shape {list(tensor.shape)} and type "
                f"{str(tensor.dtype).removeprefix('torch.')}, expected a 2-D floating-point *{ENDING}"
            )
    return KQuantError(f"the include pattern {pattern!r} matches no tensor{_nearest(pattern, eligible)}")


def _nearest(pattern: str, names: Sequence[str]) -> str:
    """A hint at what was meant: the pattern with stars around it, if that helps, else the nearest names."""
    if (wider := f"*{pattern.strip('*')}*") != pattern and _any_match(names, wider):
        return f"; did you mean {wider!r}?"
    modules = [name.removesuffix(ENDING) for name in names]
    close = near(pattern.strip("*"), modules, cutoff=0.3)
    return f"; the nearest names are {', '.join(close)}" if close else ""
