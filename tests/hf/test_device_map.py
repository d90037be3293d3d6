"""Models spread by accelerate: the numbers of the same model in one place, and the folder of what lies on disk."""

import gc
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_classifiers
import tiny_text_models
import torch
from small_bundles import compress

from kquant_cli import demo
from kquant_cli.errors import KQuantError
from kquant_cli.evaluation import TASKS, EvalOptions, perplexity
from kquant_cli.evaluation.texts import Text
from kquant_cli.hf.loading import LoadedModel
from kquant_cli.runtime import load_model

TEXT = Text(tiny_text_models.text(), "made up")
OPTIONS = EvalOptions(seqlen=64, limit=6)
# Embeddings, a block and the head on disk, the rest on the CPU.
PARTS = ("embed_tokens", "embed_positions", "final_layer_norm", *(f"layers.{block}" for block in range(4)))
MIXED = {f"model.decoder.{part}": "cpu" for part in PARTS} | {
    "model.decoder.embed_tokens": "disk",
    "model.decoder.layers.1": "disk",
    "model.decoder.layers.2": "disk",
    "lm_head": "disk",
}


@pytest.fixture(scope="module", params=["dense", "annealed", "fused"])
def model(request: pytest.FixtureRequest, demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model, its bundle, and one whose weights transformers does not take as they are (decoded)."""
    if request.param != "fused":
        return demo.demo_model_path() if request.param == "dense" else demo_bundle
    folder = tmp_path_factory.mktemp("spread")
    return compress(tiny_text_models.make(folder / "mixtral", "mixtral"), folder / "bundle")


def measured(loaded: LoadedModel) -> float:
    return perplexity(loaded, TEXT, OPTIONS).perplexity


def test_a_spread_model_has_the_same_perplexity(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    whole = load_model(model, device="cpu")
    assert whole.devices == "cpu"
    mixed = MIXED
    if whole.model.config.model_type == "mixtral":
        mixed = {"model.embed_tokens": "disk", "model.layers.0": "cpu", "model.layers.1": "disk", "model.norm": "cpu"}
        mixed |= {"model.rotary_emb": "cpu", "lm_head": "cpu"}
    expected = measured(whole)
    for device_map in ("auto", {"": "cpu"}, mixed):
        spread = load_model(model, dtype="float32", device_map=device_map)
        assert spread.device.type in ("cpu", "cuda")
        assert measured(spread) == pytest.approx(expected, rel=1e-6)
    assert set(spread.devices.split("+")) == {"cpu", "disk"}
    assert spread.model.get_input_embeddings().weight.device.type == "meta"
    assert perplexity(spread, TEXT, OPTIONS, against=whole).against is not None
    del spread
    gc.collect()
    assert list(tmp_path.glob("kquant-offload-*")) == []


def test_a_spread_classifier_has_the_same_metrics(tmp_path: Path) -> None:
    folder, data = tiny_classifiers.make(tmp_path / "model", num_labels=2), tiny_classifiers.write_tsv("mrpc", tmp_path)
    device_map = {"bert.embeddings": "disk", "bert.encoder": "cpu", "bert.pooler": "disk", "classifier": "cpu"}
    task, options = TASKS["mrpc"], EvalOptions(data=data)
    whole = load_model(folder, auto_class=task.auto_class, device="cpu")
    spread = load_model(folder, auto_class=task.auto_class, device_map=device_map, dtype="float32")
    assert spread.devices == "disk+cpu"
    found = [task.run(loaded, task.read(options), options).metrics for loaded in (whole, spread)]
    assert found[0] == found[1]


def test_a_failure_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken, temporary = tmp_path / "broken", tmp_path / "temporary"
    tiny_text_models.make(broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    with pytest.raises(KQuantError, match="cannot be loaded"):
        load_model(broken, device_map="auto")
    assert list(temporary.iterdir()) == []


def test_the_option(kquant: Callable[..., Any], tmp_path: Path) -> None:
    folder = tiny_text_models.make(tmp_path / "tiny-opt")
    arguments = ("eval", folder, "--task", "demo", "--limit", 2)
    run = kquant(*arguments, "--device-map", "auto")
    assert run.code == 0, run.err
    assert f"float32 on {'cuda' if torch.cuda.is_available() else 'cpu'}" in run.out
    for more, says in (
        (("--device-map", "balenced"), "device map 'balenced' is not known: use balanced"),
        (("--device-map", "auto", "--device", "cpu"), "leave one out"),
    ):
        run = kquant(*arguments, *more)
        assert run.code == 2
        assert says in run.err
