"""WikiText-2 from every place it may come from gives the same text; other files are taken as they stand."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from kquant_cli.errors import KQuantError
from kquant_cli.evaluation.texts import join_rows, text_file, wikitext2, wikitext_rows

# The raw file begins and ends like this; the data set has a row a line, blank ones emptied, others with their newline.
RAW = " \n = A Title = \n \n First , and second . \n\t\n = = Part = = \n"
ROWS = ["", " = A Title = \n", "", " First , and second . \n", "", " = = Part = = \n"]
JOINED = "\n\n = A Title = \n\n\n\n\n First , and second . \n\n\n\n\n = = Part = = \n"


@pytest.fixture
def raw_file(tmp_path: Path) -> Path:
    path = tmp_path / "wiki.test.raw"
    path.write_text(RAW, encoding="utf-8")
    return path


def write_parquet(path: Path, rows: list[str], column: str = "text") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table({column: rows}), path)


def test_rows_are_rebuilt_from_the_raw_file(raw_file: Path) -> None:
    assert wikitext_rows(raw_file) == ROWS
    assert wikitext2(raw_file, None).content == join_rows(ROWS) == JOINED


def test_unusual_white_space_ends_no_line(tmp_path: Path) -> None:
    path = tmp_path / "odd.raw"
    path.write_bytes(" one\u2028two\x0bthree \n four\r\n five".encode())
    assert wikitext_rows(path) == [" one\u2028two\x0bthree \n", " four\n", " five"]


def test_the_hubs_layout_in_a_folder(tmp_path: Path) -> None:
    write_parquet(tmp_path / "wikitext-2-raw-v1/test-00000-of-00002.parquet", ROWS[:2])
    write_parquet(tmp_path / "wikitext-2-raw-v1/test-00001-of-00002.parquet", ROWS[2:])
    write_parquet(tmp_path / "wikitext-2-raw-v1/train-00000-of-00001.parquet", ["not this"])
    for place in (tmp_path, tmp_path / "wikitext-2-raw-v1"):
        assert wikitext2(place, None).content == JOINED
    single = tmp_path / "test.parquet"
    write_parquet(single, ROWS)
    assert wikitext2(single, None).content == JOINED


def test_a_folder_with_the_raw_file(raw_file: Path) -> None:
    assert wikitext2(raw_file.parent, None).content == JOINED


def test_what_is_a_table_is_not_taken_verbatim(raw_file: Path) -> None:
    table = raw_file.parent / "test.parquet"
    write_parquet(table, ROWS)
    for data, kind in ((raw_file.parent, "folder"), (table, "table")):
        with pytest.raises(KQuantError, match=f"--data-format text takes a text file .*{data} is a {kind} of rows"):
            wikitext2(data, "text")
        assert wikitext2(data, "wikitext").content == JOINED
    assert wikitext2(raw_file, "text").content == RAW


def test_the_hub_is_asked_for_the_published_test_split(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load_dataset(*args: str, **options: str) -> dict[str, list[str]]:
        asked.append((args, options))
        return {"text": ROWS}

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert wikitext2(None, None).content == JOINED
    assert asked == [(("Salesforce/wikitext", "wikitext-2-raw-v1"), {"split": "test"})]


def test_without_a_network_it_says_what_to_get_and_where_to_put_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(KQuantError, match=r"get wiki\.test\.raw .* pass it as --data wiki\.test\.raw"):
        wikitext2(None, None)


def test_text_is_the_file_verbatim(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("eins\r\nzwei\n\n drei\u2028vier é".encode())
    text = text_file(path, "text")
    assert text.content.encode() == path.read_bytes()
    assert text.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert "verbatim" in text.description


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    latin = tmp_path / "latin.txt"
    latin.write_bytes(b"caf\xe9")
    with pytest.raises(KQuantError, match=r"latin\.txt is not UTF-8 text \(byte 3\)"):
        text_file(latin, "text")
    with pytest.raises(KQuantError, match=r"absent\.txt cannot be read"):
        text_file(tmp_path / "absent.txt", "text")
    with pytest.raises(KQuantError, match=r"expected wikitext-2-raw-v1/test-\*\.parquet"):
        wikitext2(tmp_path, None)
    other = tmp_path / "other.parquet"
    write_parquet(other, ROWS, column="content")
    with pytest.raises(KQuantError, match=r"other\.parquet is not a parquet file with a column 'text'"):
        wikitext2(other, None)
    other.write_bytes(b"no parquet")
    with pytest.raises(KQuantError, match=r"other\.parquet is not a parquet file"):
        wikitext2(other, None)


def test_the_real_file_has_the_published_rows(shared: Callable[[str], Path]) -> None:
    rows = wikitext_rows(shared("data/wikitext-2/wiki.test.raw"))
    assert len(rows) == 4358  # as the data set's card says
    assert rows[:4] == ["", " = Robert Boulter = \n", "", rows[3]]
    assert rows[3].startswith(" Robert Boulter is an English film ")
    assert all(row == "" or (row.endswith(" \n") and row.strip()) for row in rows)
