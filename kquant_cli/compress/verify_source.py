"""A bundle against the checkpoint that it was made of: every error computed anew, every other tensor bit by bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from kquant_cli.bundle.faults import Fault
from kquant_cli.bundle.format import MANIFEST
from kquant_cli.bundle.reader import Bundle
from kquant_cli.checkpoint import Checkpoint
from kquant_cli.encoders import relative_error
from kquant_cli.errors import KQuantError
from kquant_cli.files.tensor_bytes import tensor_bytes

TOLERANCE = 1e-3  # of an error: other devices and numbers of threads sum in another order
SMALLEST = 1e-6


def source_faults(
    bundle: Bundle, checkpoint: Checkpoint, told: Callable[[str, int, int], None] = lambda _what, _done, _all: None
) -> Iterator[Fault]:
    """Where the bundle is not what its manifest says of this source; a matrix and what it decodes to in memory.

    Norms and biases, which a tuning changes, are compared only where the manifest says of none.
    """
    path, manifest = bundle.path, bundle.manifest
    stored = {name: (dtype, shape) for name, dtype, shape in bundle.shapes()}
    for name in sorted(set(stored) ^ set(checkpoint.tensors)):
        what = f"is not in {checkpoint.name}" if name in stored else f"of {checkpoint.name} is missing"
        yield Fault(name, f"{path}: the tensor {name!r} {what}; give the checkpoint that the bundle was made of")
    if manifest.get("tied", {}) != dict(checkpoint.tied):
        yield Fault(
            "tied", f"{path / MANIFEST}: ties {manifest.get('tied')!r}, where {checkpoint.name} has {checkpoint.tied!r}"
        )
    tuned = isinstance(manifest.get("tuning"), dict) and bool(manifest["tuning"].get("tuned"))
    both = [name for name in stored if name in checkpoint.tensors]
    for number, name in enumerate(both, start=1):
        info, (dtype, shape) = checkpoint.tensors[name], stored[name]
        try:
            if (dtype, shape) != (info.dtype, tuple(info.shape)):
                why = f"is {dtype} {list(shape)}, where {checkpoint.name} has {info.dtype} {list(info.shape)}"
            elif name in bundle.infos:
                changed = tuned and len(shape) == 1 and dtype.is_floating_point
                why = (
                    "" if changed or _same(bundle, checkpoint, name) else f"is not that of {checkpoint.name} bit by bit"
                )
            else:
                why = _error_fault(bundle, checkpoint, name)
        except (KQuantError, ValueError) as error:
            why = f"cannot be compared ({error})"
        if why:
            yield Fault(name, f"{path}: the tensor {name!r} {why.replace('torch.', '')}")
        told("tensors of the source", number, len(both))


def _same(bundle: Bundle, checkpoint: Checkpoint, name: str) -> bool:
    return bytes(tensor_bytes(bundle.tensor(name))) == bytes(tensor_bytes(checkpoint.read(name)))


def _error_fault(bundle: Bundle, checkpoint: Checkpoint, name: str) -> str:
    """What is wrong with the recorded error of an encoded matrix; "" for nothing."""
    module = name.removesuffix(".weight")
    encoded = bundle.encoded(module)
    weight: torch.Tensor = checkpoint.read(name)
    found = relative_error(weight.T if encoded.layout.transposed else weight, encoded)
    record = bundle.manifest.get("matrices", {}).get(module, {})
    recorded = record.get("relative_error") if isinstance(record, dict) else None
    if isinstance(recorded, int | float) and abs(found - recorded) <= TOLERANCE * recorded + SMALLEST:
        return ""
    shown = f"{recorded:.6f}" if isinstance(recorded, int | float) else repr(recorded)
    return f"decodes with a relative error of {found:.6f}, where {MANIFEST} records {shown}"
