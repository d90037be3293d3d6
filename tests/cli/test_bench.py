"""`kquant bench`: a real run, and numbers that agree with what is known of the models."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import tiny_text_models
from safetensors.torch import load_file

from kquant_cli.cli.bench import _prompt_that_fits
from kquant_cli.demo import demo_model_path
from kquant_cli.errors import KQuantError
from kquant_cli.speed import Measurement, Row, Workload
from kquant_cli.speed.measure import measure


def measure_here(row: Row, device: str, workload: Workload) -> Measurement:
    """Without a process of its own, which takes seconds to import torch and transformers."""
    return measure(row.path, device, row.dtype, workload)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure all models in this process: memory is then that of all tests."""
    monkeypatch.setattr(import_module("kquant_cli.speed.bench"), "_in_a_process", measure_here)
    monkeypatch.setattr("kquant_cli.speed.floor.BUFFER", 2**22)


def test_a_bundle_in_a_process_of_its_own(demo_bundle: Path, kquant: Any, tmp_path: Path) -> None:
    """The default prompt fits the model, which takes 256 tokens, of which 32 are new by default."""
    outcome = kquant("bench", demo_bundle, "--rounds", 1, "--json", tmp_path / "speed.json")
    assert outcome.code == 0, outcome.err
    found = json.loads((tmp_path / "speed.json").read_text())
    assert (found["workload"]["prompt"], found["workload"]["new"], found["rounds"]) == (224, 32, 1)
    (model,) = found["models"]
    assert (model["kind"], model["dtype"], model["device"]) == ("bundle", "float16", "cpu")
    assert model["peak_memory"] > model["loaded_memory"] > 0
    assert model["peak_memory"] > model["weight_bytes_per_token"]
    assert "decode" in outcome.out


@pytest.mark.usefixtures("here")
def test_a_bundle_beside_the_dense_model(demo_bundle: Path, kquant: Any, tmp_path: Path) -> None:
    flags = ["--prompt-tokens", 16, "--new-tokens", 4, "--rounds", 1, "--json", tmp_path / "speed.json"]
    outcome = kquant("bench", demo_bundle, "--against", demo_model_path(), *flags)
    assert outcome.code == 0, outcome.err
    models = json.loads((tmp_path / "speed.json").read_text())["models"]
    assert [(m["kind"], m["dtype"]) for m in models] == [
        ("bundle", "float16"),
        ("dense", "float32"),
        ("dense", "bfloat16"),
    ]
    ours, full, half = models
    for model in models:
        assert model["decode_tokens_per_second"] > 0
        assert model["prefill_tokens_per_second"] > 0
        floor = model["bandwidth"] / model["weight_bytes_per_token"]
        assert model["floor_tokens_per_second"] == pytest.approx(floor)
    dense = load_file(demo_model_path() / "model.safetensors")
    read = sum(t.numel() for name, t in dense.items() if "embed_positions" not in name)  # the head is the tokens' table
    assert full["weight_bytes_per_token"] == 4 * read
    assert half["weight_bytes_per_token"] == 2 * read
    stored = [load_file(file) for file in demo_bundle.glob("*.safetensors")]
    packed = sum(t.nbytes for part in stored for name, t in part.items() if ".weight_" in name)
    kept = {n: t for part in stored for n, t in part.items() if ".weight_" not in n and "embed_positions" not in n}
    assert ours["weight_bytes_per_token"] == packed + 2 * sum(t.numel() for t in kept.values())


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (
            ["--prompt-tokens", 250, "--new-tokens", 20],
            "has a maximum of 256 tokens, fewer than 250 of a prompt and 20 new",
        ),
        (["--rounds", 0], "--rounds is 0: expected 1 or more"),
        (["--dtype", "int3"], "dtype 'int3' is not known"),
        (["--against", "./nowhere", "--prompt-tokens", 8, "--new-tokens", 1, "--rounds", 1], "no folder './nowhere'"),
    ],
)
def test_bad_input(flags: list[Any], sentence: str, demo_bundle: Path, kquant: Any) -> None:
    outcome = kquant("bench", demo_bundle, *flags)
    assert outcome.code == 2
    assert sentence in " ".join(outcome.err.split())


@pytest.mark.parametrize("make", [tiny_text_models.make_mpt, partial(tiny_text_models.make, arch="gpt2")])
def test_the_maximum_has_many_names(make: Callable[[Path], Path], tmp_path: Path) -> None:
    """MPT's config calls it max_seq_len, GPT-2's n_positions: 64 tokens here."""
    folder = str(make(tmp_path / "model"))
    assert _prompt_that_fits(folder, 32) == 32
    assert _prompt_that_fits(folder, 64) == 1
    with pytest.raises(KQuantError, match=r"has a maximum of 64 tokens, fewer than 60 of a prompt and 5 new"):
        measure(folder, "cpu", "float32", Workload(60, 5))
    assert measure(folder, "cpu", "float32", Workload(60, 4, 1)).decode_tokens_per_second > 0


def test_the_default_prompt_where_nothing_is_known(tmp_path: Path) -> None:
    assert _prompt_that_fits("some-one/on-the-hub", 32) == 256
    for content in ("{", "[]", '{"model_type": "zebra"}', '{"model_type": "mamba"}'):
        (tmp_path / "config.json").write_text(content)
        assert _prompt_that_fits(str(tmp_path), 32) == 256
