"""What makes a run the same as another: settings, source, format, versions and what was decided."""

from __future__ import annotations

import json
import platform
from hashlib import sha256
from importlib.metadata import version
from typing import Any

import torch

import kquant_cli
from kquant_cli.bundle.format import FORMAT_VERSION
from kquant_cli.calibration import measuring_threads
from kquant_cli.checkpoint import content_hash
from kquant_cli.compress.plan import Plan, describe_texts
from kquant_cli.native import loops


def identity_of(plan: Plan, device: torch.device | str) -> dict[str, Any]:
    """What the manifest says of settings and source, and the fingerprint of both.

    And what was decided otherwise than the settings say, and the number of threads where it counts: products of large
    matrices, on which all measurements of a model rest, and some bases, are rounded otherwise by each number.
    """
    settings, content = plan.config.model_dump(mode="json"), content_hash(plan.checkpoint)
    identity: dict[str, Any] = {"settings": settings, "source": content, "format": FORMAT_VERSION}
    if texts := describe_texts(plan.config):
        identity["texts"] = texts
    others: dict[str, Any] = {"decided": dict(plan.decided)} if plan.decided else {}
    if plan.depends_on_threads and (threads := measuring_threads(device)) > 1:
        others["threads"] = threads
    identity |= others
    text = json.dumps(identity, sort_keys=True)
    source = {"name": plan.checkpoint.name, "revision": plan.checkpoint.revision, "sha256": content}
    return {"fingerprint": sha256(text.encode()).hexdigest(), "settings": settings, **others, "source": source}


def versions_of(plan: Plan, device: torch.device | str) -> dict[str, str]:
    """The versions that bytes may depend on."""
    versions = {"kashin-quant": kquant_cli.__version__, "torch": torch.__version__}
    versions |= {"transformers": version("transformers")} if plan.is_measured else {}
    kind = torch.device(device).type
    return versions | {"python": platform.python_version(), "device": kind, "loops": loops(kind)}


def cautions(plan: Plan, device: torch.device | str) -> list[str]:
    """What the encoders of the plan have to say of the device."""
    encoders = {job.config.encoder: job.config.chosen for job in plan.jobs}
    cautions = (encoder.caution(torch.device(device)) for encoder in encoders.values())
    return [caution for caution in cautions if caution]
