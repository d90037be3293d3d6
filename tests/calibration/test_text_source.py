"""Texts to calibrate on: a file, or a data set in a folder or on the hub, of which no more is read than is used."""

from hashlib import sha256

import datasets
import pytest

from kquant_cli.calibration import text_source
from kquant_cli.calibration.text_source import open_source
from kquant_cli.errors import KQuantError

ROWS = ["first row", "second row of it", "third"]


@pytest.fixture(autouse=True)
def _anew():
    text_source._data_set.cache_clear()


def folder(place, rows, column="text"):
    place.mkdir()
    datasets.Dataset.from_dict({column: rows}).to_parquet(place / "train-00000-of-00001.parquet")
    return place


def test_a_folder_in_the_hubs_layout(tmp_path):
    source = open_source(str(folder(tmp_path / "set", ROWS)))
    assert source.text == "\n\n".join(ROWS)
    assert source.sha256 == sha256(source.text.encode()).hexdigest()
    assert source.description == f"set (the first {len(source.text)} letters, SHA-256 {source.sha256})"


def test_of_the_hub_no_more_rows_are_fetched_than_are_used(monkeypatch):
    asked, fetched = [], []

    def load_dataset(*args, **options):
        asked.append((args, options))
        return (fetched.append(n) or {"text": "x" * 100, "url": "y"} for n in range(1000))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(text_source, "LETTERS", 250)
    source = open_source("somebody/texts:en")
    assert asked == [(("somebody/texts", "en"), {"split": "train", "streaming": True})]
    assert fetched == [0, 1, 2]
    assert source.text == "\n\n".join(["x" * 100] * 3)
    assert open_source("somebody/texts:en") is source  # the hub is asked once
    assert len(asked) == 1


def test_a_file_goes_before_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "wiki").write_text("some text")
    assert open_source("texts/wiki").text == "some text"


def test_what_is_neither_is_said(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(KQuantError, match=r"'texts/wiki\.txt' is no file here, and as a data set it is neither in the"):
        open_source("texts/wiki.txt")


def test_a_connection_that_breaks_is_a_sentence(monkeypatch):
    def rows():
        yield {"text": "a"}
        raise OSError("connection reset")

    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **options: rows())
    with pytest.raises(KQuantError, match=r"a/b cannot be read as a data set .*\(connection reset\)"):
        open_source("a/b")


@pytest.mark.parametrize(
    ("rows", "column", "said"),
    [(ROWS, "sentence", "has the columns sentence, expected one of text, 'text'"), (["", " "], "text", "has no text")],
)
def test_a_data_set_without_text_is_refused(tmp_path, rows, column, said):
    with pytest.raises(KQuantError, match=said):
        open_source(str(folder(tmp_path / "set", rows, column)))
