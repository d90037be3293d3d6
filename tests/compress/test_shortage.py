"""A shortage of memory anywhere in a run is one sentence that names what needs less; nothing is left out for it."""

import warnings

import pytest
import torch

from kquant_cli.calibration import collect_moments, lazy_model, replay, sensitivity, session
from kquant_cli.calibration.gradient_moments import GradientMoments
from kquant_cli.checkpoint import Checkpoint
from kquant_cli.compress import pipeline, preparation, write_bundle
from kquant_cli.compress.memory import enough_memory
from kquant_cli.config import CompressConfig
from kquant_cli.errors import MemoryShortage

SHORT = {
    "torch": RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"),
    "cuda": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "python": MemoryError(),
}
RANDOM = ("--calibration", "random")
OWN = ("--calibration", "auto", "--calibration-tokens", 256, "--tune-steps", 1)
PLACES = {
    "statistics": (collect_moments, "windows", RANDOM),
    "a module's weights": (lazy_model, "read_config", RANDOM),
    "the model of a calibration": (session, "load_dense", OWN),
    "its text": (session, "write_text", OWN),
    "its forward pass": (GradientMoments, "forward", OWN),
    "its moments": (GradientMoments, "backward", OWN),
    "the model of sensitivities": (sensitivity, "load_dense", (*RANDOM, "--bits", 2.5)),
    "their replay": (replay.Replay, "run", (*RANDOM, "--bits", 2.5)),
    "a channel scale": (preparation, "column_energy", RANDOM),
    "reading": (Checkpoint, "read", ("--calibration", "none")),
    "encoding": (pipeline, "encode", RANDOM),
    "writing": (write_bundle, "write_weights", RANDOM),
}


@pytest.mark.parametrize("kind", SHORT)
@pytest.mark.parametrize("place", PLACES)
def test_it_is_one_sentence_and_no_bundle(kquant, tiny_llama, tmp_path, monkeypatch, place, kind):
    def short(*_, **__):
        raise SHORT[kind]

    owner, name, settings = PLACES[place]
    monkeypatch.setattr(owner, name, short)
    result = kquant("compress", tiny_llama, "-o", tmp_path / "b", "--device", "cpu", *settings)
    assert result.code == 2, result.err
    assert "Traceback" not in result.err
    assert "no channel scaling" not in result.err
    assert "no calibration" not in result.err
    (sentence,) = (line for line in result.err.splitlines() if "error:" in line)
    assert "there is not enough memory: end other programs, or give " in sentence
    wanted = {"auto": "--calibration random or none, or fewer --calibration-tokens", "random": "--calibration none"}
    assert wanted.get(settings[1], "--effort fast") in sentence
    assert sentence.endswith("--effort fast; what is finished is kept")
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("settings", "options"),
    [
        ({}, "give --calibration random or none, or fewer --calibration-tokens, or --effort fast"),
        ({"effort": "fast"}, "give --calibration random or none, or fewer --calibration-tokens"),
        ({"encoder": "uniform", "calibration": "random"}, "give --calibration none"),
        ({"encoder": "uniform", "calibration": "none"}, "run it where there is more"),
        ({"calibration": "none", "effort": "fast", "bits": 2.5}, "give a whole number of --bits"),
    ],
)
def test_only_options_that_help_are_named(settings, options):
    wanted = f"end other programs, or {options}; what is finished is kept"
    with pytest.raises(MemoryShortage, match=wanted), enough_memory(CompressConfig(**settings)):
        raise MemoryError


def test_what_torch_would_go_on_without_is_a_shortage_too(kquant, tiny_llama, tmp_path, monkeypatch):
    """Of a product that oneDNN has no memory for it warns, and takes another, whose bytes differ."""

    def warn(*_, **__):
        warnings.warn("mkldnn_matmul failed, switching to BLAS gemm: could not create a primitive", stacklevel=1)

    monkeypatch.setattr(GradientMoments, "forward", warn)
    result = kquant("compress", tiny_llama, "-o", tmp_path / "b", "--device", "cpu", *OWN)
    assert result.code == 2
    assert "there is not enough memory: end other programs, or give " in result.err
