"""What a run decides for want of memory before it begins, and what is said where the memory ends on the way."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

from kquant_cli.calibration import RANDOM
from kquant_cli.calibration.memory import memory_limit, memory_needed
from kquant_cli.compress.plan import Plan
from kquant_cli.config import CompressConfig, all_settings
from kquant_cli.errors import MemoryShortage, is_shortage


def within_memory(plan: Plan, device: torch.device | str, say: Callable[[str], None]) -> Plan:
    """The plan without a calibration on text, where `calibration` is auto and that needs more memory than there can be.

    By the limits of machine and process, which are the same from run to run, not by what is free. `Plan.decided` says
    so, and with it the fingerprint: a bundle that was made otherwise is another.
    """
    if plan.config.calibration != "auto" or not any(job.calibrated for job in plan.jobs):
        return plan
    needed, limit = memory_needed(plan.checkpoint), memory_limit(torch.device(device))
    if needed <= limit:
        return plan
    note = (
        f"no calibration on the model's own text, which costs quality: {plan.checkpoint.name} needs about "
        f"{needed / 1e9:.1f} GB of memory for it, more than there is"
    )
    say(f"warning: {note} ({limit / 1e9:.1f} GB)")
    jobs = tuple(replace(job, calibrated=False) for job in plan.jobs)
    return replace(plan, jobs=jobs, notes=(*plan.notes, note), decided={"calibration": RANDOM})


@contextmanager
def enough_memory(config: CompressConfig) -> Iterator[None]:
    """Turn whatever is raised for want of memory into one sentence that names the options that need less.

    Where oneDNN has no memory for a product, torch warns, and goes on with another, of other bytes: that is raised too.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*failed, switching to ")
            yield
    except MemoryShortage:
        raise
    except Exception as error:
        if not is_shortage(error):
            raise
        raise MemoryShortage(
            f"there is not enough memory: end other programs, or {_less(config)}; what is finished is kept"
        ) from error


def _less(config: CompressConfig) -> str:
    """What needs less than these settings."""
    options = []
    if config.calibration == "none":
        options += ["a whole number of --bits"] if config.is_average else []
    else:
        options += ["--calibration none"] if config.calibration == RANDOM else ["--calibration random or none"]
        options += [] if config.calibration == RANDOM else ["fewer --calibration-tokens"]
    options += (
        ["--effort fast"] if config.effort != "fast" and config.encoder in all_settings()["effort"].encoders else []
    )
    return f"give {', or '.join(options)}" if options else "run it where there is more"
