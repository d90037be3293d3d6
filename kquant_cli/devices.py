"""Where a model runs and in which dtype: what `auto` means, and a sentence for what cannot be had."""

from functools import cache
from typing import Final, Literal

import torch

from kquant_cli.errors import KQuantError

DTYPES: Final = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float64": torch.float64,
}


def resolve_device(device: str | torch.device) -> torch.device:
    """`auto` is the GPU where there is one, else the CPU; KQuantError for other kinds and for what is not there."""
    if str(device) == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise KQuantError(f"device {device!r} is not one that torch knows: use auto, cpu or cuda") from error
    if resolved.type == "cuda" and not torch.cuda.is_available():
        raise KQuantError(f"device '{device}' was asked for, but torch sees no GPU: use --device cpu (or auto)")
    if resolved.type not in ("cpu", "cuda"):
        raise KQuantError(f"device '{device}' is not one that kquant runs on: use auto, cpu or cuda")
    count = torch.cuda.device_count() if resolved.type == "cuda" else 1
    if resolved.index is not None and resolved.index >= count:
        last = f"the last is {resolved.type}:{count - 1}"
        raise KQuantError(f"device '{device}' was asked for, but {last}: use auto, cpu or cuda")
    return resolved


def resolve_dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype | Literal["auto"]:
    """The dtype to load in; `auto` (or None) is float32 on the CPU and, elsewhere, "auto": the checkpoint's own."""
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype is None or dtype == "auto":
        return torch.float32 if device.type == "cpu" else "auto"
    if dtype not in DTYPES:
        raise KQuantError(f"dtype {dtype!r} is not known: use auto, {', '.join(DTYPES)}")
    return DTYPES[dtype]


@cache
def multiplies_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 faster than float32."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
