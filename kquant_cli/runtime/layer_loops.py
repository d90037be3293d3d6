"""The functions of native/layer.cpp, told their arguments' types, and the structures that they read."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import torch
from torch import Tensor

from kquant_cli.native import library
from kquant_cli.runtime.torch_threads import parallel, threads_for

NUMBERS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # native/numbers.h
POINTER, LONG, INT = ctypes.c_void_p, ctypes.c_long, ctypes.c_int
ARGUMENTS: dict[str, list[Any]] = {
    "kquant_transform_pair": [POINTER, LONG, *[POINTER] * 5],
    "kquant_blocks_size": [LONG, LONG, INT],
    "kquant_to_blocks": [POINTER, LONG, LONG, INT, INT, INT, POINTER, INT, POINTER],
    "kquant_from_blocks": [POINTER, LONG, LONG, INT, LONG, LONG, POINTER],
    "kquant_layer": [POINTER, POINTER, INT, LONG, POINTER, INT, INT, POINTER],
    "kquant_product_of_blocks": [POINTER, POINTER, POINTER, LONG, POINTER, INT, POINTER],
    "kquant_transform_first": [POINTER, POINTER, INT, LONG, POINTER, INT, INT, POINTER],
    "kquant_transform_last": [POINTER, POINTER, INT, LONG, POINTER, INT, INT, POINTER],
    "kquant_decoder_begin": [*[POINTER] * 7, INT, POINTER],
    "kquant_decoder_end": [*[POINTER] * 6, LONG, POINTER, INT, POINTER],
    "kquant_decoder_stack": [POINTER, LONG, *[POINTER] * 3, LONG, POINTER, ctypes.c_float, POINTER, INT, POINTER],
    "kquant_head": [POINTER, POINTER, INT, LONG, LONG, POINTER, POINTER, INT, POINTER],
    "kquant_bytes": [POINTER, POINTER, INT, LONG, POINTER, INT, POINTER],
    "kquant_byte_rows": [POINTER, LONG, LONG, POINTER, INT, POINTER],
    "kquant_dense_rows": [POINTER, LONG, LONG, POINTER, POINTER, INT, INT, POINTER],
    "kquant_dense_columns": [POINTER, LONG, LONG, POINTER, INT, INT, POINTER],
}
RESULTS: dict[str, Any] = {"kquant_transform_pair": None, "kquant_from_blocks": None, "kquant_blocks_size": LONG}


class BasesStruct(ctypes.Structure):
    """`Bases` of native/transform.h."""

    _fields_ = (
        *((name, LONG) for name in ("power", "order")),
        *((name, POINTER) for name in ("first", "second", "dense", "transposed")),
    )


class MatrixStruct(ctypes.Structure):
    """`Matrix` of native/matrix.h."""

    _fields_ = (
        *((name, POINTER) for name in ("blocks", "codebook", "scale", "bias", "col_scale")),
        *((name, LONG) for name in ("rows", "levels", "book_columns", "scales", "scale_dtype", "bias_dtype")),
        *((name, LONG) for name in ("col_dtype", "tables", "terms")),
        ("output", BasesStruct),
        ("factor", ctypes.c_float),
    )


class LayerStruct(ctypes.Structure):
    """`Layer` of native/matrix.h."""

    _fields_ = (
        ("columns", LONG),
        ("input", BasesStruct),
        ("inverse", POINTER),
        ("count", LONG),
        ("matrices", POINTER),
    )


class ByteMatrixStruct(ctypes.Structure):
    """`ByteMatrix` of native/head.h."""

    _fields_ = (
        *((name, POINTER) for name in ("codes", "scale", "bias", "inverse")),
        *((name, LONG) for name in ("rows", "columns", "group", "scale_rows", "scale_dtype", "bias_dtype")),
        *((name, ctypes.c_float) for name in ("step", "offset")),
    )


class DecoderStruct(ctypes.Structure):
    """`Decoder` of native/decoder.h."""

    _fields_ = (
        *((name, POINTER) for name in ("qkv", "o", "gate_up", "down", "norm", "norm_after", "norm_q", "norm_k")),
        *((name, LONG) for name in ("dtype", "heads", "kv_heads", "head_size")),
        *((name, ctypes.c_float) for name in ("epsilon", "epsilon_after", "epsilon_heads", "scaling")),
    )


class StackedStruct(ctypes.Structure):
    """`Stacked` of native/decoder.h."""

    _fields_ = (
        *((name, POINTER) for name in ("decoder", "keys", "values")),
        *((name, LONG) for name in ("key_head", "key_token", "value_head", "value_token")),
    )


@cache
def loops() -> Any:
    """The library, or None where no compiler can make it."""
    found: Any = library("layer")
    for name, types in ARGUMENTS.items() if found is not None else ():
        function = getattr(found, name)
        function.argtypes, function.restype = types, RESULTS.get(name, INT)
    return found


def call(name: str, *arguments: Any, work: int) -> None:
    """Run a function that works in threads; MemoryError where it has no memory for what it makes on the way."""
    if getattr(loops(), name)(*arguments, threads_for(work), parallel()):
        raise MemoryError(f"no memory for what {name} computes on the way")


def address(tensor: Tensor | None) -> int | None:
    """Where a tensor's numbers are; None for None."""
    return None if tensor is None else tensor.data_ptr()
