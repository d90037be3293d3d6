"""A checkpoint that is already quantised is refused: its tensors are codes, and encoding those would mean nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kquant_cli.checkpoint.stored_tensor import TensorLike
from kquant_cli.errors import KQuantError

METHODS = {  # a tensor's last name -> the method that stores such tensors
    "qweight": "GPTQ or AWQ",
    "qzeros": "GPTQ or AWQ",
    "g_idx": "GPTQ",
    "weight_scale_inv": "FP8 with block scales",
    "weight_scale": "FP8 or compressed-tensors",
    "weight_packed": "compressed-tensors",
    "absmax": "bitsandbytes",
    "quant_map": "bitsandbytes",
    "SCB": "bitsandbytes",
    "W_q": "HQQ",
    "gate_up_proj_blocks": "MXFP4",
    "weight_codes": "kquant",
    "weight_codebook": "kquant",
}


def refuse_quantised_config(config: Mapping[str, Any], where: str) -> None:
    """Raises KQuantError, naming the method, when `config` says that the weights are quantised."""
    settings = config.get("quantization_config") or config.get("compression_config")
    if not settings:
        return
    method = settings.get("quant_method") if isinstance(settings, dict) else None
    if method == "kashin":
        raise KQuantError(
            f"{where} is already a kquant bundle: `kquant decompress` turns it back into a dense checkpoint"
        )
    raise KQuantError(_sentence(where, str(method or "an unnamed method"), "config.json says so"))


def refuse_quantised_tensors(tensors: Mapping[str, TensorLike], where: str) -> None:
    """Raises KQuantError, naming method and tensor, when names or data types are those of quantised weights."""
    for name, tensor in tensors.items():
        method = METHODS.get(name.rpartition(".")[2])
        dtype = str(tensor.dtype).removeprefix("torch.")
        if method is None and dtype.startswith("float8"):
            method = "FP8"
        if method is None and name.endswith(".weight") and len(tensor.shape) == 2 and dtype in ("int8", "uint8"):
            method = "8-bit integers"
        if method is not None:
            raise KQuantError(_sentence(where, method, f"it holds {name!r} in {dtype}"))


def _sentence(where: str, method: str, evidence: str) -> str:
    return f"{where} is already quantised with {method} ({evidence}): give the checkpoint that it was made from"
