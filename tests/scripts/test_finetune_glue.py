"""`scripts/finetune_glue.py` on a tiny encoder: it learns, a seed gives the same weights again, eval takes them."""

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_classifiers
import tiny_models


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny encoder without a classifier's head, and data whose training file is its validation file."""
    root = tmp_path_factory.mktemp("finetune")
    tiny_models.make("bert", root / "encoder", vocab_size=tiny_classifiers.VOCABULARY)
    tiny_classifiers.save_tokenizer(root / "encoder")
    for task in ("cola", "stsb"):
        folder = tiny_classifiers.write_tsv(task, root / "data") / tiny_classifiers.FOLDERS[task]
        (folder / "train.tsv").write_bytes((folder / "dev.tsv").read_bytes())
    return root


@pytest.fixture
def finetune(monkeypatch: pytest.MonkeyPatch, place: Path, scripts: Path) -> Callable[..., None]:
    """Run the script in this process: finetune(task, output, option, ...)."""
    monkeypatch.syspath_prepend(scripts)
    script = importlib.import_module("finetune_glue")

    def run(task: str, output: str, *options: str) -> None:
        command = ["finetune_glue.py", str(place / "encoder"), "--task", task, "--data", str(place / "data")]
        command += ["-o", str(place / output), "--lr", "3e-3", "--batch-size", "4", "--device", "cpu", *options]
        monkeypatch.setattr(sys, "argv", command)
        script.main()

    return run


def test_it_learns_and_eval_takes_what_it_saved(
    finetune: Callable[..., None], kquant: Callable[..., Any], place: Path, tmp_path: Path
) -> None:
    finetune("cola", "cola", "--epochs", "16")
    facts = json.loads((place / "cola" / "finetune.json").read_text())
    first, *_, last = facts["epochs_done"]
    assert last["loss"] < 0.8 * first["loss"]
    assert last["matthews"] > 0.7
    assert (facts["task"], facts["seed"], facts["examples"], len(facts["epochs_done"])) == ("cola", 42, 16, 16)
    names = json.loads((place / "cola" / "config.json").read_text())["id2label"]
    assert names == {"0": "unacceptable", "1": "acceptable"}
    run = kquant("eval", place / "cola", "--task", "cola", "--data", place / "data", "--json", tmp_path / "r.json")
    assert run.code == 0, run.err
    measured = json.loads((tmp_path / "r.json").read_text())["results"][0]["metrics"]["matthews"]
    assert measured == pytest.approx(last["matthews"])


def test_the_same_seed_gives_the_same_weights(
    finetune: Callable[..., None], place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for output, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        finetune("stsb", output, "--epochs", "1", "--seed", seed, "--limit", "8")
    assert "epoch 1: loss" in capsys.readouterr().out
    a, b, c = ((place / output / "model.safetensors").read_bytes() for output in "abc")
    assert a == b != c
    assert list(json.loads((place / "a" / "config.json").read_text())["id2label"]) == ["0"]  # one output: the score


def test_missing_data_is_one_sentence(finetune: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        finetune("rte", "rte")
    assert stop.value.code == 2
    assert "holds no RTE: expected RTE/train.tsv" in capsys.readouterr().err
