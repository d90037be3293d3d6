"""The first use of a kernel on a device: it is used from then on where its result is the plain one.

What cannot be compiled, does not run on the device, or computes something else is switched off for the process, with
one warning to the logger "kquant_cli", and the product is computed as it would be without it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable

import torch

_verdicts: dict[tuple[Hashable, ...], bool] = {}


def passed(key: tuple[Hashable, ...], error: Callable[[], float], bound: float) -> bool:
    """Whether `error()` was at most `bound` at the first use of `key`, whose first entry is the kernel's name.

    A trial waits for the device, which a CUDA graph cannot hold: while one is captured, what was not tried before is
    not used.
    """
    if key in _verdicts:
        return _verdicts[key]
    if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
        return False
    try:
        with torch.no_grad():
            found = error()
        reason = "" if found <= bound else f"its relative error is {found:.1e}, expected at most {bound:.0e}"
    except Exception as exception:  # whatever stops a compiler or a driver: there is another way
        reason = f"{type(exception).__name__}: {' '.join(str(exception).split())[:300]}"
    if reason:
        logging.getLogger("kquant_cli").warning(
            "the kernel %s is switched off, others take its place: %s", " ".join(map(str, key)), reason
        )
    _verdicts[key] = not reason
    return not reason


def switched_off() -> list[str]:
    """The kernels that did not pass, each with its device and format."""
    return [" ".join(map(str, key)) for key, good in _verdicts.items() if not good]


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """|found - expected| / |expected| (Frobenius norms), in float64."""
    return float((found.double() - expected).norm() / expected.norm())
