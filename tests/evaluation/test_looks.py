"""No task makes a number of another's data: each kind of file under each task, and what is said of it."""

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import tiny_classifiers
import tiny_text_models

from kquant_cli.errors import KQuantError
from kquant_cli.evaluation import TASKS, EvalOptions

WIKI = " \n = A Title = \n \n First , and second @-@ hand . \n \n = = Part = = \n \n More of it . \n"
PTB = " no it was n't so \n the index fell N points in the <unk> market \n mr. <unk> said it rose N N \n"
PASSAGES = [" ".join(tiny_text_models.text(60, seed=seed).split()) for seed in range(30)]
DOCUMENTS = [{"text": passage, "url": "x", "timestamp": "y"} for passage in PASSAGES]


def jsonl(rows: list[Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


CONTENTS: dict[str, str | bytes] = {
    "wiki.test.raw": WIKI,
    "wiki.valid.raw": WIKI.replace("A Title", "Homarus gammarus"),
    "wiki.train.raw": WIKI.replace("A Title", "Valkyria Chronicles III"),
    "wiki.test.tokens": WIKI + " a <unk> of it \n" * 20,
    "ptb.test.txt": PTB,
    "ptb.valid.txt": " consumers may want to move their telephones a little <unk> to it \n" + PTB,
    "lambada.jsonl": jsonl([{"text": passage} for passage in PASSAGES]),
    "lambada.txt": "\n".join(PASSAGES),
    "c4.json": jsonl(DOCUMENTS),
    "c4.json.gz": gzip.compress(jsonl(DOCUMENTS).encode()),
    "labelled.jsonl": jsonl([{"text": passage, "label": 1} for passage in PASSAGES]),
    "pretty.json": json.dumps(DOCUMENTS, indent=1),
    "json.txt": json.dumps(DOCUMENTS, indent=1),
    "table.tsv": "sentence\tlabel\n" + "A fine film.\t1\n" * 3 + "A dull one.\t0\n",
    "table.csv": "sentence,label\n" + "A fine film.,1\n" * 3 + "A dull one.,0\n",
    "page.html": "<!DOCTYPE html>\n<html><body>\n" + "<p>Hello</p>\n" * 3,
    "book.txt": "It was a bright cold day.\n" + "\n".join(f"Then came day {day}, and nobody knew." for day in range(9)),
    "long.txt": "\n".join(f"Then came day {day}, and nobody knew." for day in range(200)),
    "repeated.txt": "the same line\n" * 200,
    "empty.txt": "",
    "blank.txt": " \n\t\n",
    "binary.txt": bytes(range(256)) * 4,
    "nul.txt": "abc\n\0def\n" * 9,
    "latin.txt": b"caf\xe9",
    "half.jsonl": '{"text": "a \\ud800 b"}\n',
    "deep.jsonl": "[" * 100_000,
    "digits.jsonl": '{"text": ' + "9" * 5000 + "}",
}
RIGHT = {
    "wikitext2": {"wiki.test.raw"},
    "ptb": {"ptb.test.txt"},
    "c4": {"c4.json", "c4.json.gz"},
    "lambada_text": {"lambada.jsonl", "lambada.txt", "book.txt"},  # of few short lines nobody can tell
    "lambada_word": {"lambada.jsonl", "lambada.txt", "book.txt"},
    "text": set(CONTENTS)
    - {"c4.json.gz", "empty.txt", "blank.txt", "binary.txt", "nul.txt", "latin.txt", "p.parquet", "parquet.txt"},
}
SAYS = {
    ("wikitext2", "table.tsv"): "is a table by its first lines, of 2 columns with tabs between them",
    ("wikitext2", "table.csv"): "is a table by its first lines, with the columns sentence,label",
    ("wikitext2", "lambada.jsonl"): "is JSON by its first line",
    ("wikitext2", "page.html"): "is HTML or XML by its first line",
    ("wikitext2", "wiki.valid.raw"): "is the validation split (its first title is Homarus gammarus)",
    ("wikitext2", "wiki.train.raw"): "is the training split (its first title is Valkyria Chronicles III)",
    ("wikitext2", "wiki.test.tokens"): "has <unk> for rare words (in line 9)",
    ("wikitext2", "book.txt"): "has no heading such as ' = Title = ' (line 1 is 'It was a bright cold day.')",
    ("wikitext2", "repeated.txt"): "has 200 lines, of which 1 differ (the first is 'the same line')",
    ("wikitext2", "nul.txt"): "has the control character U+0000 in line 2",
    ("wikitext2", "parquet.txt"): "is a parquet file by its first bytes",
    ("ptb", "wiki.test.raw"): "has capital letters (sentence 1 is '= A Title =')",
    ("ptb", "lambada.txt"): "has N for a number or <unk> for a rare word in 0 of 30 sentences",
    ("ptb", "ptb.valid.txt"): "is the validation split",
    ("ptb", "table.tsv"): "is a table by its first lines",
    ("c4", "lambada.jsonl"): "line 1 has no 'url' beside its text (it has ['text'])",
    ("lambada_word", "c4.json"): "line 1 has 'url' beside its text, so is of C4",
    ("lambada_word", "labelled.jsonl"): "line 1 has 'label' beside its text, so is of a task of classification",
    ("lambada_word", "wiki.test.raw"): "has '= A Title =' in row 1",
    ("lambada_word", "long.txt"): "has rows of 7 words, by their median",
    ("lambada_word", "half.jsonl"): "line 1 has half a character",
    ("lambada_text", "deep.jsonl"): "line 1 is not a JSON object",
    ("wikitext2", "empty.txt"): "is empty: give wiki.test.raw",
    ("lambada_text", "nul.txt"): "has the control character U+0000 in row 2",
    ("text", "binary.txt"): "is not UTF-8 text",
    ("text", "blank.txt"): "is empty",
    ("text", "nul.txt"): "has the control character U+0000 in line 2",
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("looks")
    for name, content in CONTENTS.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    pyarrow.parquet.write_table(pyarrow.table({"text": ["x"] * 30}), folder / "p.parquet")
    (folder / "parquet.txt").write_bytes((folder / "p.parquet").read_bytes())
    return folder


@pytest.mark.parametrize("name", [*CONTENTS, "p.parquet", "parquet.txt"])
@pytest.mark.parametrize("task", RIGHT)
def test_every_kind_of_file_under_every_task(files: Path, task: str, name: str) -> None:
    options = EvalOptions(data=files / name)
    if name in RIGHT[task]:
        assert TASKS[task].read(options)
        return
    with pytest.raises(KQuantError) as caught:
        TASKS[task].read(options)
    sentence = str(caught.value)
    assert sentence.startswith(str(files / name))
    assert "\n" not in sentence
    assert len(sentence) < 600
    assert SAYS.get((task, name), "") in sentence


def test_the_hubs_rows_are_looked_at_too(files: Path, tmp_path: Path) -> None:
    folder = tmp_path / "wikitext-2-raw-v1"
    folder.mkdir()
    pyarrow.parquet.write_table(pyarrow.table({"text": ["prose", "and more"]}), folder / "test-0.parquet")
    with pytest.raises(KQuantError, match="has no heading such as"):
        TASKS["wikitext2"].read(EvalOptions(data=tmp_path))
    with pytest.raises(KQuantError, match="has no heading such as"):
        TASKS["wikitext2"].read(EvalOptions(data=files / "book.txt", data_format="text"))
    assert TASKS["text"].read(EvalOptions(data=files / "book.txt", data_format="wikitext"))  # it is said to be so


@pytest.mark.parametrize("task", [*RIGHT, "sst2", "mnli"])
def test_what_has_no_end(task: str, tmp_path: Path) -> None:
    for name in ("pipe.txt", "pipe.jsonl"):
        os.mkfifo(tmp_path / name)
        for data in (tmp_path / name, Path("/dev/zero")):
            with pytest.raises(KQuantError, match=rf"{data}"):
                TASKS[task].read(EvalOptions(data=data))


def test_a_gzip_file_of_one_endless_line(tmp_path: Path) -> None:
    file = tmp_path / "bomb.json.gz"
    with gzip.open(file, "wb", compresslevel=1) as bomb:
        for _ in range(30):
            bomb.write(b"0" * 1_000_000)
    with pytest.raises(KQuantError, match="holds more than is read"):
        TASKS["c4"].read(EvalOptions(data=file))


def with_note(names: list[str], columns: dict[str, Any], file: Path) -> Path:
    note = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
    table = pyarrow.table(columns).replace_schema_metadata({"huggingface": json.dumps(note)})
    pyarrow.parquet.write_table(table, file)
    return file


def test_labels_that_mean_something_else(tmp_path: Path) -> None:
    """RTE, WNLI and MRPC have the same columns, and zeros and ones."""
    pairs = {"sentence1": ["a b", "c d"], "sentence2": ["e f", "g h"], "label": [0, 1]}
    file = with_note(["entailment", "not_entailment"], pairs, tmp_path / "validation.parquet")
    assert TASKS["rte"].read(EvalOptions(data=file))[""].labels == (0, 1)
    for task in ("wnli", "mrpc"):
        with pytest.raises(KQuantError, match=r"has the labels \['entailment', 'not_entailment'\], and those of"):
            TASKS[task].read(EvalOptions(data=file))


@pytest.mark.parametrize(("theirs", "task"), [("wnli", "rte"), ("rte", "wnli")])
def test_official_files_with_the_same_columns(theirs: str, task: str, tmp_path: Path) -> None:
    root = tiny_classifiers.write_tsv(theirs, tmp_path)
    file = next(root.rglob("dev.tsv"))
    assert TASKS[theirs].read(EvalOptions(data=file))
    with pytest.raises(KQuantError, match=r"dev\.tsv line 2: the label is .* in the official file of"):
        TASKS[task].read(EvalOptions(data=file))


def test_a_file_without_a_header_is_known_by_its_marks(tmp_path: Path) -> None:
    file = tmp_path / "dev.tsv"
    file.write_text("x\t1\tsomething\tA sentence.\n", encoding="utf-8")
    with pytest.raises(
        KQuantError, match=r"dev\.tsv line 1 has 'something' in column 3, which only marks sentences with \*"
    ):
        TASKS["cola"].read(EvalOptions(data=file))


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (lambda number: f"Film {number} is good.\t0\n", "has the label 0 in every one of 150 rows"),
        (lambda number: f"A film.\t{number % 2}\n", "has 150 lines, of which 1 differ"),
    ],
    ids=["one label", "one text"],
)
def test_examples_that_tell_nothing(line: Callable[[int], str], says: str, tmp_path: Path) -> None:
    file = tmp_path / "dev.tsv"
    file.write_text("sentence\tlabel\n" + "".join(map(line, range(150))), encoding="utf-8")
    with pytest.raises(KQuantError) as caught:
        TASKS["sst2"].read(EvalOptions(data=file))
    assert says in str(caught.value)


def test_the_published_files_are_what_they_should_be(shared: Callable[[str], Path]) -> None:
    data = shared("data")
    assert TASKS["wikitext2"].read(EvalOptions(data=data / "wikitext-2/wiki.test.raw"))
    for name in ("lambada_test.jsonl", "lambada_test_plain_text.txt"):
        assert len(TASKS["lambada_word"].read(EvalOptions(data=data / "lambada" / name)).texts) == 5153
    for task in ("cola", "sst2", "mrpc", "stsb", "qnli", "rte"):
        assert TASKS[task].read(EvalOptions(data=data / "glue"))
