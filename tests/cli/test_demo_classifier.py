"""The embedded classifier and its sentences: its recorded accuracy, by bare transformers and scikit-learn too."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sklearn.metrics
import torch
import transformers
from safetensors.torch import load_file

from kquant_cli.demo import demo_classifier_path, demo_sentences_path


def rows(file: Path) -> list[tuple[str, int]]:
    """(sentence, label) of each row."""
    header, *lines = file.read_text(encoding="utf-8").splitlines()
    assert header == "sentence\tlabel"
    return [(sentence, int(label)) for sentence, label in (line.split("\t") for line in lines)]


@pytest.fixture(scope="module")
def sentences() -> list[tuple[str, int]]:
    return rows(demo_sentences_path() / "SST-2" / "dev.tsv")


@pytest.fixture(scope="module")
def recorded() -> dict[str, float]:
    """The accuracies that stand beside the weights."""
    return json.loads((demo_classifier_path() / "finetune.json").read_text(encoding="utf-8"))["accuracy"]


def alone(examples: list[tuple[str, int]]) -> float:
    """Accuracy by transformers and scikit-learn, one sentence at a time."""
    folder = demo_classifier_path()
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    names, found = [], []
    with torch.no_grad():
        for sentence, label in examples:
            logits = model(**tokenizer(sentence, return_tensors="pt", truncation=True)).logits[0]
            found.append(model.config.id2label[int(logits.argmax())])
            names.append(("negative", "positive")[label])
    return sklearn.metrics.accuracy_score(names, found)


def evaluated(kquant: Callable[..., Any], model: Path, file: Path, *options: object) -> dict[str, Any]:
    arguments = ("--task", "sst2", "--data", demo_sentences_path(), "--device", "cpu", "--json", file, *options)
    run = kquant("eval", model, *arguments)
    assert run.code == 0, run.err
    return json.loads(file.read_text())["results"][0]


def test_it_is_right_as_often_as_is_recorded(
    kquant: Callable[..., Any], sentences: list[tuple[str, int]], recorded: dict[str, float], tmp_path: Path
) -> None:
    found = evaluated(kquant, demo_classifier_path(), tmp_path / "r.json")["metrics"]["accuracy"]
    assert found == pytest.approx(alone(sentences), abs=1e-9)
    assert found == pytest.approx(recorded["demo sentences"], abs=0.011)  # another CPU may tip a sentence over
    assert found >= 0.75


def test_it_has_learnt_sst2(recorded: dict[str, float], shared: Callable[[str], Path]) -> None:
    assert alone(rows(shared("data/glue/SST-2/dev.tsv"))) == pytest.approx(recorded["SST-2 validation"], abs=0.004)
    assert recorded["SST-2 validation"] >= 0.79


def test_four_bits_keep_most_of_it_and_one_bit_less(kquant: Callable[..., Any], tmp_path: Path) -> None:
    original, results = demo_classifier_path(), {}
    for bits in (4, 1):
        bundle = tmp_path / f"{bits}bit"
        assert kquant("compress", original, "-o", bundle, "--bits", bits, "--device", "cpu").code == 0
        results[bits] = evaluated(kquant, bundle, tmp_path / "r.json", "--against", original)
    four, one = results[4], results[1]
    assert four["metrics"]["accuracy"] >= four["against"]["metrics"]["accuracy"] - 0.03
    assert four["against"]["agreement"] >= 0.97
    assert 0 < four["against"]["kl_divergence"]["value"] < 0.001
    assert one["against"]["kl_divergence"]["value"] > 30 * four["against"]["kl_divergence"]["value"]
    assert one["against"]["agreement"] < 1


def test_it_is_small() -> None:
    folder = demo_classifier_path()
    assert sum(file.stat().st_size for file in folder.iterdir()) < 3e6
    assert {tensor.dtype for tensor in load_file(folder / "model.safetensors").values()} == {torch.float16}


def test_sentences_are_balanced_and_in_the_official_format(sentences: list[tuple[str, int]]) -> None:
    assert Counter(label for _, label in sentences) == {0: 50, 1: 50}
    assert len({sentence for sentence, _ in sentences}) == 100
    assert all(sentence == sentence.lower().strip() for sentence, _ in sentences)
    negated = [
        sentence for sentence, _ in sentences if {"not", "n't", "never", "no", "nothing"} & set(sentence.split())
    ]
    assert len(negated) >= 20


def test_no_sentence_is_from_sst2(sentences: list[tuple[str, int]], shared: Callable[[str], Path]) -> None:
    folder = shared("data/glue/SST-2")
    theirs = "\n".join(squeezed(text) for file in ("train", "dev") for text, _ in rows(folder / f"{file}.tsv"))
    assert not [sentence for sentence, _ in sentences if squeezed(sentence) in theirs]


def squeezed(sentence: str) -> str:
    """The letters and digits of a sentence."""
    return "".join(character for character in sentence.lower() if character.isalnum())
