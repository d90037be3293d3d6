"""`scripts/train_demo_classifier.py` on a few sentences: it learns, and a seed gives the same files again."""

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_classifiers
import transformers


@pytest.fixture
def train(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, scripts: Path) -> Callable[..., Path]:
    """Run the script in this process on a training file that is its validation file: train(output, option, ...)."""
    folder = tiny_classifiers.write_tsv("sst2", tmp_path / "data") / "SST-2"
    (folder / "train.tsv").write_bytes((folder / "dev.tsv").read_bytes())
    monkeypatch.syspath_prepend(scripts)
    script = importlib.import_module("train_demo_classifier")
    monkeypatch.setattr(script.torch, "set_num_threads", lambda threads: None)  # of this process, and all its tests

    def run(output: str, *options: str) -> Path:
        command = ["train_demo_classifier.py", str(tmp_path / "data"), "-o", str(tmp_path / output)]
        monkeypatch.setattr(sys, "argv", [*command, "--vocabulary", "200", *options])
        script.main()
        return tmp_path / output

    return run


def test_it_learns_and_says_so(train: Callable[..., Path]) -> None:
    folder = train("made", "--epochs", "30", "--dropout", "0")
    facts = json.loads((folder / "finetune.json").read_text())
    assert facts["epochs_done"][-1]["loss"] < 0.5 * facts["epochs_done"][0]["loss"]
    assert facts["accuracy"]["SST-2 validation"] == 1
    assert f"{facts['accuracy']['demo sentences']:.1%} of the sentences" in (folder / "README.md").read_text()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert tokenizer.convert_ids_to_tokens(tokenizer("The SOUP wanted").input_ids)[:2] == ["[CLS]", "the"]
    assert len(tokenizer) == facts["vocabulary"] == 200
    assert not [token for token in tokenizer.all_special_tokens if token.startswith("##")]


def test_the_same_seed_gives_the_same_files(train: Callable[..., Path]) -> None:
    a, b, c = (train(name, "--epochs", "1", "--seed", seed) for name, seed in (("a", "1"), ("b", "1"), ("c", "2")))
    for file in ("tokenizer.json", "config.json", "model.safetensors"):
        assert (a / file).read_bytes() == (b / file).read_bytes(), file
    assert (a / "model.safetensors").read_bytes() != (c / "model.safetensors").read_bytes()
