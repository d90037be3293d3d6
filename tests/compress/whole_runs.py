"""What the tests of whole runs share: a run, its files, and the error of what it stored."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from kquant_cli.bundle import open_bundle
from kquant_cli.bundle.reader import Bundle
from kquant_cli.calibration import InputGroup, Scale
from kquant_cli.checkpoint import open_checkpoint
from kquant_cli.compress import pipeline, preparation
from kquant_cli.compress.plan import make_plan
from kquant_cli.config import CompressConfig

NOTHING: Callable[[object], None] = lambda _: None  # noqa: E731


def compress(
    source: Path,
    out: Path,
    say: Callable[[str], None] = NOTHING,
    progress: Callable[[pipeline.Progress], None] = NOTHING,
    **settings: object,
) -> Bundle:
    """The bundle that a run with few sweeps makes, without data unless the settings ask for some."""
    plan = make_plan(open_checkpoint(source), CompressConfig(**{"effort": "fast", "calibration": "random", **settings}))
    assert pipeline.compress(plan, out, say=say, progress=progress)
    return open_bundle(out)


def impose_scales(monkeypatch: pytest.MonkeyPatch, first: float = 0.5) -> None:
    """Channel scales from `first` to 2 in place of the best, which for some matrices are none."""

    def scale(_jobs: object, group: InputGroup, _weights: object, _device: object) -> Scale:
        return Scale(torch.linspace(first, 2, len(group.second_moments)), 1.0, 1.0, 0.5)

    monkeypatch.setattr(preparation, "_group_scale", scale)


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file but run.json."""
    files = [p for p in folder.rglob("*") if p.is_file() and p.name != "run.json"]
    return {p.relative_to(folder).as_posix(): sha256(p.read_bytes()).hexdigest() for p in files}


def scales(bundle: Bundle) -> set[str]:
    """The modules that store a channel scale."""
    return {name.removesuffix(".weight_channel_scale") for name in bundle.infos if "channel_scale" in name}


def encoded_bits(bundle: Bundle) -> float:
    """All that is stored for encoded matrices, in bits, over their weights: from the files alone."""
    stored = [info.nbytes for name, info in bundle.infos.items() if name.rpartition(".")[2].startswith("weight_")]
    return 8 * sum(stored) / sum(rows * columns for rows, columns in (v.shape for v in bundle.layouts.values()))


def assert_decodes(bundle: Bundle, source: Path, most: float = 0.7) -> None:
    """Every encoded matrix is the source's within the error that the manifest states, and that is below `most`."""
    weights = load_file(source / "model.safetensors")
    for name in bundle.layouts:
        weight = weights[f"{name}.weight"]
        error = float(torch.linalg.vector_norm(bundle.weight(name) - weight) / torch.linalg.vector_norm(weight))
        stated = bundle.manifest["matrices"][name]["relative_error"]
        assert abs(error - stated) <= 1e-4 * stated, name
        assert 0 < error < most, name
