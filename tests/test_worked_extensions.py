"""The worked extensions of docs/architecture.md run as they stand there."""

import re

import numpy as np
import pytest
import torch

from kquant_cli.config import EncoderConfig, all_settings
from kquant_cli.encoders import ENCODERS, encode, encoded_bytes
from kquant_cli.evaluation import EvalOptions


@pytest.fixture
def run(pytestconfig):
    """Runs the first block of code after a heading, which is a whole file, and gives what it defines."""
    text = (pytestconfig.rootpath / "docs" / "architecture.md").read_text(encoding="utf-8")

    def run(heading: str) -> dict:
        section = re.split(r"^## ", text.partition(f"\n## {heading}\n")[2], flags=re.MULTILINE)[0]
        names: dict = {"__name__": "worked"}
        exec(re.findall(r"^```python\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)[0], names)
        return names

    return run


def test_the_basis(run):
    from kquant_cli.bases import BasisSpec

    basis = run("Worked extension: a basis")["Hartley"](BasisSpec("hartley", 48, 0))
    angle = 2 * np.pi * np.outer(np.arange(48), np.arange(48)) / 48
    assert np.abs(basis.dense().numpy() - (np.cos(angle) + np.sin(angle)) / np.sqrt(48)).max() < 1e-12


@pytest.mark.parametrize("factor", [1e-30, 1.0, 1e10])
def test_the_encoder(run, factor, monkeypatch):
    """It holds its promises: settings, refusals, bytes, and the error that it expects."""
    nf4 = run("Worked extension: an encoder")["NF4"]()
    monkeypatch.setitem(ENCODERS, nf4.name, nf4)
    config = EncoderConfig(encoder=nf4.name, nf4_group=24)
    assert all_settings()["nf4_group"].encoders == (nf4.name,)
    assert nf4.refusal(16, config.settings) is None
    assert "expected 16" in nf4.refusal(8, config.settings)
    encoded = encode(factor * torch.randn(32, 64, generator=torch.Generator().manual_seed(0)), config)
    assert encoded_bytes((32, 64), config) == sum(t.numel() * t.element_size() for t in encoded.to_tensors().values())
    assert encoded.layout.scale == (32, 3)
    error = encoded.record.relative_error**2
    assert error == pytest.approx(nf4.expected_error(16, config.settings), rel=0.15)


def test_the_task(run):
    task = run("Worked extension: a task")["SENTENCES"]
    assert not task.read(EvalOptions()).content.startswith("sentence ")
