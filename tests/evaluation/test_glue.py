"""GLUE on tiny random classifiers, against transformers alone: one example at a time, no padding, metrics by hand."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import scipy.stats
import tiny_classifiers
import torch
import transformers

from kquant_cli.evaluation import TASKS, EvalOptions
from kquant_cli.evaluation.classification import ClassificationResult, outputs
from kquant_cli.evaluation.tasks.glue import SPECS
from kquant_cli.hf.loading import LoadedModel
from kquant_cli.runtime import load_model

CLASSIFIER = "AutoModelForSequenceClassification"
OUTPUTS = {spec.name: spec.outputs for spec in SPECS}
NAMES = {spec.name: spec.labels for spec in SPECS}
PAIRED = {spec.name: len(spec.columns) == 2 for spec in SPECS}


@pytest.fixture(scope="session")
def glue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every task's official files."""
    root = tmp_path_factory.mktemp("glue")
    for task in NAMES:
        tiny_classifiers.write_tsv(task, root)
    return root


@pytest.fixture(scope="session")
def classifiers(tmp_path_factory: pytest.TempPathFactory) -> dict[int, LoadedModel]:
    """Classifiers by their number of outputs."""
    root = tmp_path_factory.mktemp("classifiers")
    return {n: load(tiny_classifiers.make(root / f"bert-{n}", num_labels=n)) for n in (1, 2, 3)}


def load(folder: Path) -> LoadedModel:
    return load_model(folder, auto_class=CLASSIFIER, device="cpu")


def run(task: str, loaded: LoadedModel, against: LoadedModel | None = None, **options: Any) -> ClassificationResult:
    chosen = EvalOptions(**options)
    result = TASKS[task].run(loaded, TASKS[task].read(chosen), chosen, against=against)
    assert isinstance(result, ClassificationResult)
    return result


def alone(loaded: LoadedModel, task: str, shift: int = 3) -> torch.Tensor:
    """Transformers alone: the logits of each example by itself (examples, outputs)."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(loaded.path, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(loaded.path)
    rows = []
    for first, second, _ in tiny_classifiers.examples(task, shift):
        texts = (first, second) if PAIRED[task] else (first,)
        with torch.no_grad():
            rows.append(model(**tokenizer(*texts, return_tensors="pt", truncation=True, max_length=64)).logits[0])
    return torch.stack(rows).double()


def numbers(task: str) -> list[float]:
    """The labels as numbers, in the order of the hub's data set."""
    order = list(NAMES[task])
    return [
        float(label) if not order else order.index(label) if label in order else int(label)
        for label in tiny_classifiers.LABELS[task]
    ]


def by_hand(task: str, labels: list[float], logits: torch.Tensor) -> dict[str, float]:
    """The task's metrics by their formulas."""
    if task == "stsb":
        scores = logits[:, 0].numpy()
        return {
            "pearson": float(np.corrcoef(labels, scores)[0, 1]),
            "spearman": float(np.corrcoef(scipy.stats.rankdata(labels), scipy.stats.rankdata(scores))[0, 1]),
        }
    predicted = logits.argmax(dim=1).tolist()
    pairs = list(zip(labels, predicted, strict=True))
    right = sum(label == guess for label, guess in pairs) / len(pairs)
    tp, tn, fp, fn = (pairs.count(cell) for cell in ((1, 1), (0, 0), (0, 1), (1, 0)))
    if task == "cola":
        below = math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
        return {"matthews": (tp * tn - fp * fn) / below if below else 0.0}
    f1 = {"f1": 2 * tp / (2 * tp + fp + fn)} if task in ("mrpc", "qqp") else {}
    return {"accuracy": right, **f1}


@pytest.mark.parametrize("task", [name for name in NAMES if name != "mnli"])
def test_every_task_agrees_with_transformers_alone(task: str, glue: Path, classifiers: dict[int, LoadedModel]) -> None:
    loaded = classifiers[OUTPUTS[task]]
    result = run(task, loaded, data=glue)
    # A correlation of 16 outputs in float32: its sixth digit is not the same in every run.
    assert result.scores == pytest.approx(by_hand(task, numbers(task), alone(loaded, task)), abs=1e-5)
    assert (result.task, result.protocol, result.examples, result.seqlen) == (task, "run_glue", 16, 64)
    assert {"scikit-learn", "scipy"} < set(result.versions)


def test_mnli_has_two_parts(glue: Path, classifiers: dict[int, LoadedModel]) -> None:
    result = run("mnli", classifiers[3], data=glue)
    for part, shift in (("matched", 3), ("mismatched", 7)):
        expected = by_hand("mnli", numbers("mnli"), alone(classifiers[3], "mnli", shift))
        assert result.scores[f"accuracy_{part}"] == pytest.approx(expected["accuracy"])
    assert result.examples == 32


def test_the_folder_of_the_task_and_its_parent_are_the_same(glue: Path, classifiers: dict[int, LoadedModel]) -> None:
    results = [run("sst2", classifiers[2], data=place) for place in (glue, glue / "SST-2", glue / "SST-2/dev.tsv")]
    assert len({(str(result.scores), result.data_sha256, result.data) for result in results}) == 1


@pytest.mark.parametrize("task", NAMES)
def test_the_hubs_layout_gives_the_same_examples(task: str, glue: Path, tmp_path: Path) -> None:
    spec = next(spec for spec in SPECS if spec.name == task)
    for shift, (_, split) in zip((3, 7), spec.splits, strict=False):
        columns = list(zip(*tiny_classifiers.examples(task, shift), strict=True))
        table = dict(zip(spec.columns, columns, strict=False))
        label = pyarrow.array(numbers(task), pyarrow.float32() if task == "stsb" else pyarrow.int64())
        (tmp_path / task).mkdir(exist_ok=True)
        file = tmp_path / task / f"{split}-00000-of-00001.parquet"
        pyarrow.parquet.write_table(pyarrow.table({**table, "label": label}), file)
    official = TASKS[task].read(EvalOptions(data=glue))
    hub = TASKS[task].read(EvalOptions(data=tmp_path))
    assert {part: examples.sha256 for part, examples in hub.items()} == {p: e.sha256 for p, e in official.items()}
    assert all(len(examples.texts) == 16 for examples in hub.values())


def test_the_hub_is_asked_for_the_validation_split(monkeypatch: pytest.MonkeyPatch, glue: Path) -> None:
    asked: list[Any] = []

    def load_dataset(*args: str, **options: str) -> dict[str, list[Any]]:
        asked.append((args, options))
        first, second, labels = zip(*tiny_classifiers.examples("rte"), strict=True)
        return {"sentence1": [*first], "sentence2": [*second], "label": [int(label[0] == "n") for label in labels]}

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    examples = TASKS["rte"].read(EvalOptions())[""]
    assert asked == [(("nyu-mll/glue", "rte"), {"split": "validation"})]
    assert examples.sha256 == TASKS["rte"].read(EvalOptions(data=glue))[""].sha256


def relabelled(folder: Path, loaded: LoadedModel, names: list[str]) -> LoadedModel:
    """The same classifier with its outputs in the order of `names`, of the task's labels in any spelling."""
    order = [sorted(names, key=str.lower).index(name) for name in names]
    model = transformers.AutoModelForSequenceClassification.from_pretrained(loaded.path)
    with torch.no_grad():
        model.classifier.weight.copy_(model.classifier.weight[order].clone())
        model.classifier.bias.copy_(model.classifier.bias[order].clone())
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: number for number, name in enumerate(names)}
    model.save_pretrained(folder)
    tiny_classifiers.save_tokenizer(folder)
    return load(folder)


@pytest.mark.parametrize(
    ("task", "names"),
    [
        ("qnli", ["NOT ENTAILMENT", "entailment"]),
        ("sst2", ["POSITIVE", "NEGATIVE"]),
        ("mrpc", ["not-equivalent", "Equivalent"]),
    ],
)
def test_another_order_of_labels_changes_nothing(
    task: str, names: list[str], glue: Path, classifiers: dict[int, LoadedModel], tmp_path: Path
) -> None:
    """`alphabetical` has its labels named in alphabetical order, so that it and `other` are one model in two orders."""
    alphabetical = relabelled(tmp_path / "a", classifiers[2], sorted(names, key=str.lower))
    other = relabelled(tmp_path / "b", classifiers[2], names)
    mine, theirs = run(task, alphabetical, data=glue), run(task, other, data=glue)
    assert mine.scores == theirs.scores
    assert set(theirs.labels) == set(NAMES[task])
    assert theirs.labels == tuple(name.lower().replace(" ", "_").replace("-", "_") for name in names)
    compared = run(task, alphabetical, other, data=glue).against
    assert compared is not None
    assert compared.agreement == 1.0
    assert compared.kl_divergence is not None
    assert compared.kl_divergence.value == pytest.approx(0, abs=1e-12)


def test_three_labels_in_another_order(glue: Path, classifiers: dict[int, LoadedModel], tmp_path: Path) -> None:
    names = ["neutral", "contradiction", "entailment"]
    other = relabelled(tmp_path / "b", classifiers[3], names)
    logits = alone(other, "mnli")
    right = [
        names[int(row.argmax())] == label for row, label in zip(logits, tiny_classifiers.LABELS["mnli"], strict=True)
    ]
    assert run("mnli", other, data=glue).scores["accuracy_matched"] == pytest.approx(sum(right) / 16)


@pytest.mark.parametrize("arch", ["bert_classifier", "roberta_classifier"])
def test_the_batch_changes_nothing(arch: str, glue: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load(tiny_classifiers.make(tmp_path / arch, arch, num_labels=2, pad_token_id=0))
    texts = TASKS["mrpc"].read(EvalOptions(data=glue))[""].texts
    found = []
    for budget in (1, 100, 10_000):
        monkeypatch.setattr(outputs, "BATCH_TOKENS", {"cpu": budget})
        found.append(outputs.outputs(loaded, texts, 64, lambda done, total: None)[0])
    assert (found[0] - alone(loaded, "mrpc")).abs().max() < 1e-5
    assert (found[0] - found[1]).abs().max() < 1e-5
    assert (found[0] - found[2]).abs().max() < 1e-5


def test_long_examples_are_cut_and_counted(glue: Path, classifiers: dict[int, LoadedModel]) -> None:
    tokenizer = classifiers[2].tokenizer
    longer = sum(len(tokenizer(text)["input_ids"]) > 12 for text in tiny_classifiers.SENTENCES)
    result = run("sst2", classifiers[2], data=glue, seqlen=12)
    assert (result.seqlen, result.shortened) == (12, longer)
    assert 0 < longer < 16
    assert f"at most 12 tokens an example; 16 examples, {longer} of them cut" in result.sentence()
    assert "outputs: negative, positive" in result.sentence()
    assert run("sst2", classifiers[2], data=glue, limit=5).examples == 5


def test_positions_that_begin_after_the_padding_are_not_overrun(tmp_path: Path) -> None:
    """RoBERTa gives its first token the position after the padding's, so of 64 positions fewer can be used."""
    loaded = load(tiny_classifiers.make(tmp_path, "roberta_classifier", num_labels=2, pad_token_id=0))
    assert outputs.longest_example(loaded, None) == 63
    text = " ".join(tiny_classifiers.SENTENCES)
    found, shortened = outputs.outputs(loaded, [(text,), ("It rained.",)], 63, lambda *_: None)
    assert (shortened, found.shape) == (1, (2, 2))


def test_a_decoder_without_padding_token_goes_one_by_one(glue: Path, tmp_path: Path) -> None:
    config = transformers.GPT2Config(
        vocab_size=tiny_classifiers.VOCABULARY, n_embd=32, n_layer=1, n_head=2, n_positions=64, num_labels=2
    )
    torch.manual_seed(3)
    transformers.GPT2ForSequenceClassification(config).save_pretrained(tmp_path)
    tiny_classifiers.save_tokenizer(tmp_path)
    loaded = load(tmp_path)
    found, _ = outputs.outputs(loaded, TASKS["mrpc"].read(EvalOptions(data=glue))[""].texts, 64, lambda *_: None)
    assert (found - alone(loaded, "mrpc")).abs().max() < 1e-5


def test_against_pairs_the_examples(glue: Path, classifiers: dict[int, LoadedModel], tmp_path: Path) -> None:
    original = classifiers[3]
    model = transformers.AutoModelForSequenceClassification.from_pretrained(original.path)
    with torch.no_grad():
        model.classifier.weight.add_(0.3 * torch.randn(model.classifier.weight.shape, generator=torch.manual_seed(1)))
    model.save_pretrained(tmp_path)
    tiny_classifiers.save_tokenizer(tmp_path)
    changed = load(tmp_path)
    seen: list[tuple[int, int]] = []
    result = run("mnli", changed, original, data=glue, progress=lambda done, total: seen.append((done, total)))
    against = result.against
    assert against is not None
    assert seen[-1] == (64, 64)
    ours, theirs = ([alone(m, "mnli", shift) for shift in (3, 7)] for m in (changed, original))
    labels = torch.tensor(numbers("mnli"))
    hits = [[logits.argmax(dim=1) == labels for logits in both] for both in (ours, theirs)]
    difference = (hits[0][0].double() - hits[1][0].double()).numpy()
    estimate = against.differences["accuracy_matched"]
    assert estimate.value == pytest.approx(difference.mean())
    assert estimate.standard_error == pytest.approx(difference.std(ddof=1) / 4)  # sixteen examples
    assert against.metrics["accuracy_mismatched"] == pytest.approx(hits[1][1].double().mean().item())
    p, q = torch.cat(theirs).softmax(dim=1), torch.cat(ours).softmax(dim=1)
    kl = scipy.stats.entropy(p.numpy(), q.numpy(), axis=1)
    assert against.kl_divergence is not None
    assert against.kl_divergence.value == pytest.approx(kl.mean(), abs=1e-6)
    assert against.kl_divergence.standard_error == pytest.approx(kl.std(ddof=1) / math.sqrt(32), rel=1e-4)
    same = torch.cat(ours).argmax(dim=1) == torch.cat(theirs).argmax(dim=1)
    assert against.agreement == pytest.approx(same.double().mean().item())
    assert f"against {original.path} (dense, float32): model minus original (paired over examples)" in result.sentence()


def test_scores_have_no_labels_to_agree_on(glue: Path, classifiers: dict[int, LoadedModel]) -> None:
    result = run("stsb", classifiers[1], classifiers[1], data=glue)
    assert result.against is not None
    assert (result.against.kl_divergence, result.against.agreement) == (None, None)
    assert result.against.differences["spearman"].value == 0
    assert result.against.differences["spearman"].standard_error == 0
    assert "one output: the score" in result.sentence()


@pytest.mark.parametrize(
    ("task", "count", "first", "label"),
    [
        ("cola", 1043, "The sailors rode the breeze clear of the rocks.", 1),
        ("sst2", 872, "it 's a charming and often affecting journey . ", 1),
        ("mrpc", 408, None, 1),
        ("stsb", 1500, "A man with a hard hat is dancing.", 5.0),
        ("qnli", 5463, "What came into force after the new constitution was herald?", 0),
        ("rte", 277, None, 1),
    ],
)
def test_the_official_files_have_the_published_numbers_of_examples(
    task: str, count: int, first: str | None, label: float, shared: Callable[[str], Path]
) -> None:
    examples = TASKS[task].read(EvalOptions(data=shared("data/glue")))[""]
    assert len(examples.texts) == count
    assert first is None or examples.texts[0][0] == first
    assert examples.labels[0] == label


def test_real_sentences_agree_with_transformers_alone(
    classifiers: dict[int, LoadedModel], shared: Callable[[str], Path]
) -> None:
    data = shared("data/glue")
    result = run("rte", classifiers[2], data=data, limit=40)
    model, tokenizer = classifiers[2].model, classifiers[2].tokenizer
    lines = (data / "RTE/dev.tsv").read_text(encoding="utf-8").split("\n")[1:41]
    right = 0
    for _, first, second, label in (line.split("\t") for line in lines):
        inputs = tokenizer(first, second, truncation=True, max_length=64, return_tensors="pt")
        with torch.no_grad():
            right += ["entailment", "not_entailment"][int(model(**inputs).logits.argmax())] == label
    assert result.scores["accuracy"] == pytest.approx(right / 40)
    assert result.shortened > 0
