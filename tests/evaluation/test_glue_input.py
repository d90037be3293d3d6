"""What classification refuses: files, labels and models that are not the task's, each with one sentence."""

from pathlib import Path
from typing import Any

import datasets
import pytest
import tiny_classifiers
import tiny_models
import torch
import transformers

from kquant_cli.errors import KQuantError
from kquant_cli.evaluation import TASKS, EvalOptions
from kquant_cli.hf.loading import LoadedModel
from kquant_cli.runtime import load_model


def refused(task: str, data: Path | None, **options: Any) -> str:
    """The sentence that reading the task's data is answered with."""
    with pytest.raises(KQuantError) as error:
        TASKS[task].read(EvalOptions(data=data, **options))
    assert "\n" not in str(error.value)
    return str(error.value)


def write(root: Path, name: str, content: str) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("task", "name", "content", "says"),
    [
        ("sst2", "SST-2/dev.tsv", "", "dev.tsv is empty: give the official file of SST-2"),
        ("sst2", "SST-2/dev.tsv", "sentence\tlabel\n", "holds no examples: give the whole dev.tsv of SST-2"),
        ("cola", "CoLA/dev.tsv", "", "holds no examples"),
        ("cola", "CoLA/dev.tsv", "A sentence and no more.\n", "line 1 has 1 fields between tabs, expected at least 4"),
        (
            "rte",
            "RTE/dev.tsv",
            "index\tsentence1\tlabel\n",
            "no column 'sentence2' in its first line (index, sentence1",
        ),
        (
            "sst2",
            "SST-2/dev.tsv",
            "sentence\tlabel\nGood.\t2\n",
            "line 2: '2' is no label of SST-2, which has 0, 1, neg",
        ),
        (
            "rte",
            "RTE/dev.tsv",
            "index\tsentence1\tsentence2\tlabel\n0\ta\tb\tperhaps\n",
            "'perhaps' is no label of RTE",
        ),
        ("rte", "RTE/dev.tsv", "index\tsentence1\tsentence2\tlabel\n0\ta\tb\n", "line 2 has 3 fields"),
        ("sst2", "SST-2/dev.tsv", "sentence\tlabel\nGood.\t-1\n", "a test split's labels are hidden"),
        ("stsb", "STS-B/dev.tsv", "sentence1\tsentence2\tscore\na\tb\t5.5\n", "'5.5' is no score of STS-B"),
        ("stsb", "STS-B/dev.tsv", "sentence1\tsentence2\tscore\na\tb\tmuch\n", "from 0 to 5"),
        (
            "mnli",
            "MNLI/dev_matched.tsv",
            "sentence1\tsentence2\tgold_label\na\tb\tneutral\n",
            "MNLI/dev_mismatched.tsv",
        ),
        (
            "qnli",
            "RTE/dev.tsv",
            "x\n",
            "holds no QNLI: expected QNLI/dev.tsv (the official file), or qnli/validation-*",
        ),
        ("sst2", "SST-2/dev.tsv/x", "", "holds no SST-2"),
    ],
)
def test_files_that_are_not_the_tasks(tmp_path: Path, task: str, name: str, content: str, says: str) -> None:
    write(tmp_path, name, content)
    assert says in refused(task, tmp_path)


def test_other_places_that_hold_nothing(tmp_path: Path) -> None:
    assert "there is no" in refused("cola", tmp_path / "absent")
    assert "task 'mnli' has 2 files" in refused("mnli", write(tmp_path, "dev_matched.tsv", "x"))
    (tmp_path / "dev.tsv").write_bytes(b"sentence\tlabel\ncaf\xe9\t1\n")
    assert "dev.tsv is not UTF-8 text (byte 18)" in refused("sst2", tmp_path)
    write(tmp_path, "dev.parquet", "no parquet")
    assert "is not a parquet file with columns 'sentence' and 'label'" in refused("sst2", tmp_path / "dev.parquet")
    assert "--limit 0 leaves no example" in refused("sst2", tmp_path, limit=0)


def test_without_a_network_it_says_what_to_get_and_where_to_put_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    sentence = refused("cola", None)
    assert "GLUE's CoLA is neither in the cache nor to be had from the hub (nyu-mll/glue, cola)" in sentence
    assert "get the official CoLA/dev.tsv" in sentence
    assert "pass the folder that holds it as --data" in sentence


def test_broken_rows_of_qqp_are_left_out_as_on_the_hub(tmp_path: Path) -> None:
    tiny_classifiers.write_tsv("qqp", tmp_path)
    whole = TASKS["qqp"].read(EvalOptions(data=tmp_path))[""]
    with (tmp_path / "QQP/dev.tsv").open("a", encoding="utf-8") as file:
        file.write("99\t1\t2\tHow long is a piece of string?\n")
    assert TASKS["qqp"].read(EvalOptions(data=tmp_path))[""].sha256 == whole.sha256


def test_windows_line_ends_and_a_byte_order_mark(tmp_path: Path) -> None:
    tiny_classifiers.write_tsv("mrpc", tmp_path)
    plain = TASKS["mrpc"].read(EvalOptions(data=tmp_path))[""]
    file = tmp_path / "MRPC/dev.tsv"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n"))
    assert TASKS["mrpc"].read(EvalOptions(data=tmp_path))[""].sha256 == plain.sha256


def classifier(folder: Path, names: dict[int, str], numbers: dict[str, int] | None = None) -> LoadedModel:
    """A classifier whose config has these names for its outputs."""
    tiny_classifiers.make(folder, num_labels=len(names))
    config = transformers.AutoConfig.from_pretrained(folder)
    config.id2label, config.label2id = names, numbers or {name: number for number, name in names.items()}
    config.save_pretrained(folder)
    return load_model(folder, auto_class="AutoModelForSequenceClassification", device="cpu")


@pytest.mark.parametrize(
    ("task", "names", "numbers", "says"),
    [
        (
            "sst2",
            {0: "joy", 1: "anger"},
            None,
            "names its labels joy, anger, and those of task 'sst2' are negative, pos",
        ),
        ("sst2", {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}, None, "gives 3 outputs, and task 'sst2' needs 2 (one for"),
        ("stsb", {0: "LABEL_0", 1: "LABEL_1"}, None, "task 'stsb' needs 1 (the score)"),
        (
            "rte",
            {0: "LABEL_0"},
            None,
            "gives 1 outputs, and task 'rte' needs 2 (one for each of entailment, not_entail",
        ),
        (
            "sst2",
            {0: "negative", 1: "positive"},
            {"negative": 1, "positive": 0},
            "in id2label and positive, negative in",
        ),
    ],
)
def test_models_that_are_not_the_tasks(
    tmp_path: Path, task: str, names: dict[int, str], numbers: dict[str, int] | None, says: str
) -> None:
    data = tiny_classifiers.write_tsv(task, tmp_path / "data")
    loaded = classifier(tmp_path / "model", names, numbers)
    options = EvalOptions(data=data)
    with pytest.raises(KQuantError) as error:
        TASKS[task].run(loaded, TASKS[task].read(options), options)
    assert says in str(error.value)
    assert str(tmp_path / "model") in str(error.value)


def test_names_that_are_numbers_mean_the_tasks_order(tmp_path: Path) -> None:
    data = tiny_classifiers.write_tsv("cola", tmp_path / "data")
    options = EvalOptions(data=data)
    named = TASKS["cola"].run(classifier(tmp_path / "a", {0: "0", 1: "1"}), TASKS["cola"].read(options), options)
    assert named.labels == ("unacceptable", "acceptable")


def test_a_model_without_the_head_is_refused(tmp_path: Path) -> None:
    folder = tiny_models.make("bert", tmp_path / "masked")
    with pytest.raises(
        KQuantError, match=r"lacks tensors that BertForSequenceClassification needs \(.* or a model with another head"
    ):
        load_model(folder, auto_class="AutoModelForSequenceClassification", device="cpu")


def test_lengths_that_the_model_cannot_have(tmp_path: Path) -> None:
    data = tiny_classifiers.write_tsv("sst2", tmp_path / "data")
    loaded = classifier(tmp_path / "model", {0: "LABEL_0", 1: "LABEL_1"})
    for seqlen in (65, 4):
        options = EvalOptions(data=data, seqlen=seqlen)
        with pytest.raises(KQuantError, match=f"--seqlen {seqlen} must be from 5 to the 64 tokens"):
            TASKS["sst2"].run(loaded, TASKS["sst2"].read(options), options)


def test_outputs_that_are_no_numbers(tmp_path: Path) -> None:
    data = tiny_classifiers.write_tsv("sst2", tmp_path / "data")
    loaded = classifier(tmp_path / "model", {0: "LABEL_0", 1: "LABEL_1"})
    with torch.no_grad():
        next(loaded.model.parameters()).fill_(torch.nan)
    options = EvalOptions(data=data)
    with pytest.raises(KQuantError, match="is not a number: try --dtype float32"):
        TASKS["sst2"].run(loaded, TASKS["sst2"].read(options), options)
