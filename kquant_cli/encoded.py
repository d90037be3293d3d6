"""What an encoded matrix is, how it decodes, and how it becomes named tensors and back.

    W^ = diag(scale) [ L_u Cu[codes] S R_u^T  +  L_v Cv[codes] S R_v^T ] diag(1 / channel_scale),    S = diag(col_scale)

Cu and Cv are the columns of the codebook. Every part but codes and codebook is optional: bases default to the identity,
scales to ones, and a codebook of one column has no second term. The paper (arXiv 2404.09737, W = U + Q1 V Q2^T) is
L_u = R_u = I, L_v = Q1, R_v = Q2 with one scalar scale; a scale of shape (rows, groups) holds for `group` columns each.
A codebook is stored with its matrix, or is a constant one of integers that the layout names (integer_grids.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from kquant_cli.bases import BasisSpec, basis_for, require_known
from kquant_cli.codebooks.integer_grids import LEAST_EXPONENT, MOST_EXPONENT, grid_codebook, integer_grids
from kquant_cli.errors import shortened
from kquant_cli.files.safetensors_format import DTYPES
from kquant_cli.packing import MAX_LEVELS, pack, row_bytes, unpack

MOST_SIZE = 2**31 - 1  # of a side of a matrix: no layer is near it, and products of two such are 64-bit numbers
SIDES = ("left_u", "right_u", "left_v", "right_v")
FLOATING = {str(dtype).removeprefix("torch.") for dtype in DTYPES.values() if dtype.is_floating_point}


class UnknownGridError(ValueError):
    """A layout names a constant codebook that there is not: a newer kquant may have it."""


@dataclass(frozen=True)
class Frame:
    """The bases of the two terms, on the output side (left, out_features) and the input side (right, in_features)."""

    left_u: BasisSpec | None = None
    right_u: BasisSpec | None = None
    left_v: BasisSpec | None = None
    right_v: BasisSpec | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON form: only the bases that are there."""
        return {side: spec.to_dict() for side in SIDES if (spec := getattr(self, side)) is not None}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Frame:
        """The inverse of `to_dict`."""
        return cls(**{side: require_known(BasisSpec.from_dict(spec)) for side, spec in values.items()})


@dataclass(frozen=True)
class Layout:
    """All that decoding needs beside the tensors; goes into config.json as it is."""

    shape: tuple[int, int]  # (out_features, in_features)
    levels: int
    frame: Frame = field(default_factory=Frame)
    columns: int = 2  # of the codebook: 2 for (u, v), 1 where v is absent
    grid: str | None = None  # the constant codebook's name; None: the matrix stores a codebook of its own
    exponent: int = 0  # the constant codebook is its integers times 2^(exponent - 7)
    scale: tuple[int, int] | None = None  # (1, 1), (rows, 1) or (rows, groups)
    group: int = 0  # columns a scale holds for; 0: all
    col_scale: bool = False
    channel_scale: bool = False
    channel_scale_from: str | None = None  # the module that stores it, where several share it; None: this one
    transposed: bool = False  # the source stores (in_features, out_features), as GPT-2's Conv1D does
    dtype: str = "float32"  # of the source

    def to_dict(self) -> dict[str, Any]:
        """JSON form, defaults left out."""
        values: dict[str, Any] = {"shape": list(self.shape), "levels": self.levels, "dtype": self.dtype}
        values |= {"frame": self.frame.to_dict()} if self.frame != Frame() else {}
        values |= {"columns": self.columns} if self.columns != 2 else {}
        values |= {"grid": self.grid} if self.grid else {}
        values |= {"exponent": self.exponent} if self.exponent else {}
        values |= {"scale": list(self.scale)} if self.scale else {}
        values |= {"group": self.group} if self.group else {}
        values |= {k: True for k in ("col_scale", "channel_scale", "transposed") if getattr(self, k)}
        return values | ({"channel_scale_from": self.channel_scale_from} if self.channel_scale_from else {})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Layout:
        """The inverse of `to_dict`; raises TypeError, KeyError or ValueError (UnknownGridError) on anything else."""
        layout = cls(
            **{k: v for k, v in values.items() if k not in ("shape", "frame", "scale")},
            shape=tuple(values["shape"]),
            frame=Frame.from_dict(values.get("frame", {})),
            scale=tuple(values["scale"]) if "scale" in values else None,
        )
        layout._check()
        return layout

    def _check(self) -> None:
        """ValueError when a value that came from a file is not what the field's type and meaning ask for."""
        _expect(len(self.shape) == 2 and all(_is_int(n, 1) for n in self.shape), "shape", self.shape)
        _expect(max(self.shape) <= MOST_SIZE, "shape", self.shape, f": at most {MOST_SIZE} each way")
        rows, columns = self.shape
        _expect(_is_int(self.levels, 2, MAX_LEVELS), "levels", self.levels)
        _expect(_is_int(self.columns, 1, 2), "columns", self.columns)
        self._check_grid()
        _expect(_is_int(self.group, 0, MOST_SIZE), "group", self.group)
        groups = -(-columns // self.group) if self.group else 1
        fits = self.scale in (None, (1, 1), (rows, 1), (rows, groups)) and all(_is_int(n, 1) for n in self.scale or ())
        _expect(fits, "scale", self.scale)
        _expect(isinstance(self.dtype, str) and self.dtype in FLOATING, "dtype", self.dtype)
        for name in ("col_scale", "channel_scale", "transposed"):
            _expect(isinstance(getattr(self, name), bool), name, getattr(self, name))
        shared = self.channel_scale_from
        _expect(shared is None or (isinstance(shared, str) and self.channel_scale), "channel_scale_from", shared)
        for side in SIDES:
            if (spec := getattr(self.frame, side)) is not None:
                _expect(spec.size == (rows if side.startswith("left") else columns), f"size of {side}", spec.size)

    def _check_grid(self) -> None:
        """ValueError unless the constant codebook, where there is one, is known and has the levels."""
        _expect(_is_int(self.exponent, LEAST_EXPONENT, MOST_EXPONENT), "exponent", self.exponent)
        if self.grid is None:
            _expect(self.exponent == 0, "exponent without a grid", self.exponent)
            return
        _expect(isinstance(self.grid, str), "grid", self.grid)
        if self.grid not in integer_grids():
            raise UnknownGridError(f"the unknown constant codebook {self.grid!r}")
        fits = self.columns == 2 and self.levels == len(integer_grids()[self.grid])
        _expect(fits, f"grid of {self.levels} levels and {self.columns} columns", self.grid)

    def grid_codebook(self, device: torch.device) -> torch.Tensor | None:
        """The constant codebook (levels, 2), float32, shared by all that ask for it; None where one is stored."""
        return None if self.grid is None else grid_codebook(self.grid, self.exponent, device)

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor that the matrix stores itself, by its suffix, such as `weight_codes`."""
        rows, columns = self.shape
        shapes: dict[str, tuple[int, ...]] = {"weight_codes": (rows, row_bytes(columns, self.levels))}
        shapes |= {} if self.grid else {"weight_codebook": (self.levels, self.columns)}
        shapes |= {"weight_scale": self.scale} if self.scale else {}
        shapes |= {"weight_col_scale": (columns,)} if self.col_scale else {}
        own = self.channel_scale and self.channel_scale_from is None
        return shapes | ({"weight_channel_scale": (columns,)} if own else {})


@dataclass(frozen=True)
class Record:
    """How the encoding of a matrix went: provenance, not needed for decoding."""

    encoder: str
    levels: int
    basis: str | None = None
    iterations: int = 0
    converged: bool | None = None  # None: the encoder does not iterate towards a tolerance
    outcome: str = "encoded"  # or, when it did not converge, "kept" dense or "fallback" to another encoder
    trace: tuple[float, ...] = ()  # relative residual (Frobenius norm) after each iteration
    u_max: float | None = None  # |u|_inf and |v|_inf in units of the weight's root mean square
    v_max: float | None = None
    relative_error: float = float("nan")  # |weight - decoded|_F / |weight|_F, 0 for a zero matrix
    metric_loss: float | None = None  # what the error costs in the metric it was encoded in, before tuning; relative
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class EncodedMatrix:
    """Codes (rows, columns) uint8, codebook (levels, 1 or 2) float32, scales, and the layout: how they decode."""

    layout: Layout
    codes: torch.Tensor
    codebook: torch.Tensor
    scale: torch.Tensor | None = None
    col_scale: torch.Tensor | None = None
    channel_scale: torch.Tensor | None = None
    record: Record | None = field(default=None, compare=False)

    def decode(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """The weight (out_features, in_features) that the codes stand for, on the codes' device; float64 in float64."""
        compute = torch.float64 if dtype == torch.float64 else torch.float32
        frame, book = self.layout.frame, self.codebook.to(compute)
        weight = self._term(book[:, 0], frame.left_u, frame.right_u)
        if book.shape[1] == 2:
            weight += self._term(book[:, 1], frame.left_v, frame.right_v)
        if self.scale is not None:
            scale = self.scale.to(compute)
            if scale.shape[1] > 1:
                scale = scale.repeat_interleave(self.layout.group, dim=1)[:, : weight.shape[1]]
            weight *= scale
        if self.channel_scale is not None:
            weight /= self.channel_scale.to(compute)
        return weight.to(dtype)

    def _term(self, levels: torch.Tensor, left: BasisSpec | None, right: BasisSpec | None) -> torch.Tensor:
        """L C[codes] diag(col_scale) R^T."""
        term = torch.embedding(levels.unsqueeze(1), self.codes.int()).squeeze(-1)
        if self.col_scale is not None:
            term *= self.col_scale.to(term.dtype)
        if right is not None:
            term = basis_for(right).apply(term)
        return basis_for(left).apply(term, dim=0) if left is not None else term

    def to_tensors(self) -> dict[str, torch.Tensor]:
        """The tensors as stored, by suffix: codes packed, on the CPU; a channel scale of another module is not."""
        codes = {"weight_codes": pack(self.codes, self.layout.levels)}
        own = {
            name: getattr(self, name.removeprefix("weight_"))
            for name in self.layout.tensor_shapes()
            if name not in codes
        }
        return {name: tensor.cpu().contiguous() for name, tensor in (codes | own).items()}

    @classmethod
    def from_tensors(cls, layout: Layout, tensors: Mapping[str, torch.Tensor]) -> EncodedMatrix:
        """The inverse of `to_tensors`; a channel scale of another module is to be among the tensors, too.

        Raises
        ------
        ValueError
            A tensor that `layout` asks for is missing or has another shape.
        """
        shared = {"weight_channel_scale": (layout.shape[1],)} if layout.channel_scale else {}
        for name, shape in (layout.tensor_shapes() | shared).items():
            if name not in tensors or tuple(tensors[name].shape) != shape:
                found = tuple(tensors[name].shape) if name in tensors else "nothing"
                raise ValueError(f"{name}: expected shape {shape}, found {found}")
        codes = unpack(tensors["weight_codes"], layout.levels, layout.shape[1])
        constant = layout.grid_codebook(codes.device)
        codebook = tensors["weight_codebook"] if constant is None else constant
        scale, col_scale, channel_scale = (tensors.get(f"weight_{n}") for n in ("scale", "col_scale", "channel_scale"))
        return cls(layout, codes, codebook, scale, col_scale, channel_scale)

    @property
    def bits_per_weight(self) -> float:
        """Stored bits over weights: codes with their padding, codebook and scales, those that the matrix stores."""
        rows, columns = self.layout.shape
        size = rows * row_bytes(columns, self.layout.levels)
        for name in self.layout.tensor_shapes().keys() - {"weight_codes"}:
            tensor = getattr(self, name.removeprefix("weight_"))
            size += tensor.numel() * tensor.element_size()
        return 8 * size / (rows * columns)


def _is_int(value: object, least: int, most: float = float("inf")) -> bool:
    return type(value) is int and least <= value <= most  # not isinstance: JSON's true is no number


def _expect(holds: bool, what: str, value: object, limit: str = "") -> None:
    if not holds:
        raise ValueError(f"{what} cannot be {shortened(value)}{limit}")
