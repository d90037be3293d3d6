"""Devices: auto, cpu and cuda, where they are there."""

import pytest
import torch

from kquant_cli.devices import resolve_device
from kquant_cli.errors import KQuantError


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with two GPUs, as far as asking goes."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.mark.parametrize("device", ["cpu", "cpu:0", torch.device("cpu")])
def test_the_cpu_is_there(device: str | torch.device) -> None:
    assert resolve_device(device) == torch.device(device)


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(("device", "expected"), [("auto", "cuda"), ("cuda", "cuda"), ("cuda:1", "cuda:1")])
def test_gpus_that_are_there(device: str, expected: str) -> None:
    assert resolve_device(device) == torch.device(expected)


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(
    ("device", "says"),
    [
        ("abacus", "is not one that torch knows: use auto, cpu or cuda"),
        ("cuda:x", "is not one that torch knows"),
        ("meta", "device 'meta' is not one that kquant runs on: use auto, cpu or cuda"),
        ("mps", "device 'mps' is not one that kquant runs on"),
        ("cpu:9", "device 'cpu:9' was asked for, but the last is cpu:0"),
        ("cuda:2", "device 'cuda:2' was asked for, but the last is cuda:1"),
        (torch.device("cuda", 7), "device 'cuda:7' was asked for, but the last is cuda:1"),
    ],
)
def test_what_cannot_be_had_is_refused(device: str | torch.device, says: str) -> None:
    with pytest.raises(KQuantError, match=says):
        resolve_device(device)


def test_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == torch.device("cpu")
    with pytest.raises(KQuantError, match="device 'cuda:7' was asked for, but torch sees no GPU"):
        resolve_device("cuda:7")
