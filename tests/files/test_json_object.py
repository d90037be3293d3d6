"""JSON objects come back as written; everything else is refused in the reader's own words, in bounded memory."""

import errno
import json
import math
import os
import sys
import tracemalloc
from pathlib import Path

import pytest

from kquant_cli.errors import KQuantError
from kquant_cli.files.json_object import DEEPEST, JsonRefusals, find_object, read_object, strict, write_json

WORDS = JsonRefusals(
    unreadable="{path} unreadable {why}",
    invalid="{path} invalid {why}",
    no_object="{path} no object but {kind}",
    too_large="{path} too large {size} > {most}",
)


def nested(depth: int) -> dict:
    """An object with `depth` objects and lists within each other, itself included."""
    value: dict | list = {}
    for level in range(depth - 1):
        value = [value] if level % 2 else {"a": value}
    return value if isinstance(value, dict) else {"a": value[0]}


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    values = {"b": [1, 0.1, None, True], "a": {"größe": "\u2028", "": {}}}
    for ascii_only in (True, False):
        write_json(tmp_path / "x" / "y.json", values, ascii_only=ascii_only)
        content = (tmp_path / "x" / "y.json").read_bytes()
        assert content.isascii() == ascii_only
        assert content == (json.dumps(values, indent=1, ensure_ascii=ascii_only) + "\n").encode()
        assert read_object(tmp_path / "x" / "y.json") == find_object(tmp_path / "x" / "y.json") == values
        assert list(values) == list(read_object(tmp_path / "x" / "y.json"))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "invalid Expecting value"),
        (b"{", "invalid Expecting property name"),
        (b'{"a": 1} x', "invalid Extra data"),
        (b'{"a": "\xff"}', "invalid 'utf-8' codec can't decode byte 0xff"),
        ("{}".encode("utf-16"), "invalid 'utf-8' codec"),
        (b"\xef\xbb\xbf{}", "invalid Unexpected UTF-8 BOM"),
        (b'{"a": ' + b"9" * 5000 + b"}", "invalid Exceeds the limit"),
        (b"[" * 100_000, f"invalid nested more than {DEEPEST} deep"),
        (b'{"a":' * 100_000, f"invalid nested more than {DEEPEST} deep"),
        (b"[]", "no object but list"),
        (b"null", "no object but NoneType"),
        (b'"{}"', "no object but str"),
    ],
)
def test_damage(tmp_path: Path, content: bytes, words: str) -> None:
    file = tmp_path / "x{path}.json"  # braces in a name are no field to fill in
    file.write_bytes(content)
    with pytest.raises(KQuantError) as refusal:
        read_object(file, WORDS)
    assert str(refusal.value).startswith(f"{file} {words}")
    assert "\n" not in str(refusal.value)
    assert find_object(file) is None


@pytest.mark.parametrize(
    ("name", "why"), [("none", "No such file or directory"), ("folder", "Is a directory"), ("x" * 300, "File name too")]
)
def test_what_cannot_be_read(tmp_path: Path, name: str, why: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(KQuantError, match=f"unreadable {why}"):
        read_object(tmp_path / name, WORDS)
    assert find_object(tmp_path / name) is None


def test_nesting_is_bounded(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    file.write_text(json.dumps(nested(DEEPEST)))
    assert read_object(file, WORDS) == nested(DEEPEST)
    file.write_text(json.dumps({"b": [1, {}], "a": [nested(DEEPEST)]}))
    with pytest.raises(KQuantError, match=f"invalid nested more than {DEEPEST} deep"):
        read_object(file, WORDS)


def test_size_is_bounded_and_named(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    file.write_text('{"a": 1}')
    assert read_object(file, WORDS, most=8) == {"a": 1}
    with pytest.raises(KQuantError, match="too large 8 > 7"):
        read_object(file, WORDS, most=7)
    assert find_object(file, most=7) is None


def test_a_large_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with (tmp_path / "x.json").open("wb") as file:
        file.truncate(1 << 40)
    tracemalloc.start()
    with pytest.raises(KQuantError, match=f"too large {1 << 40}"):
        read_object(tmp_path / "x.json", WORDS)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


@pytest.mark.skipif(sys.platform != "linux", reason="needs /dev/zero")
def test_a_file_without_end_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.json").symlink_to("/dev/zero")
    with pytest.raises(KQuantError, match="unreadable it is no plain file"):
        read_object(tmp_path / "x.json", WORDS)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.json")
    with pytest.raises(KQuantError, match="unreadable it is no plain file"):
        read_object(tmp_path / "x.json", WORDS)


def test_the_number_of_values_is_bounded_before_parsing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kquant_cli.files.json_object.MOST_VALUES", 5)
    (tmp_path / "x.json").write_text('{"a": [1, 2, {}]}')
    assert read_object(tmp_path / "x.json", WORDS) == {"a": [1, 2, {}]}
    (tmp_path / "x.json").write_text('{"a": [1, 2, {}, 4')  # nobody looks whether it is JSON
    with pytest.raises(KQuantError, match="invalid more than 5 values"):
        read_object(tmp_path / "x.json", WORDS)


def test_wide_characters_count_four_times(tmp_path: Path) -> None:
    """Python's text then takes four bytes a character."""
    (tmp_path / "x.json").write_text('{"é": 1}', encoding="utf-8")
    assert read_object(tmp_path / "x.json", WORDS, most=36) == {"é": 1}
    with pytest.raises(KQuantError, match="too large 9 > 8"):
        read_object(tmp_path / "x.json", WORDS, most=35)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_not_finite_are_read_unless_refused(tmp_path: Path, number: str) -> None:
    (tmp_path / "x.json").write_text(f'{{"a": [{{"b": {number}}}]}}')
    assert not math.isfinite(read_object(tmp_path / "x.json", WORDS)["a"][0]["b"])
    with pytest.raises(KQuantError, match=r"invalid it holds -?(nan|inf), expected finite numbers"):
        read_object(tmp_path / "x.json", WORDS, finite=True)
    assert find_object(tmp_path / "x.json", finite=True) is None


def test_strict_values_are_those_of_transformers() -> None:
    values = {"a": [0.0, math.inf, (-math.inf,)], "b": {"c": math.nan}, "d": "Infinity"}
    written = {"a": [0.0, {"__float__": "Infinity"}, [{"__float__": "-Infinity"}]], "b": {"c": {"__float__": "NaN"}}}
    assert strict(values) == written | {"d": "Infinity"}


def test_no_character_steers_a_terminal(tmp_path: Path) -> None:
    values = {"a": "\x1b[2J\x9b\u202eé\u2069"}
    write_json(tmp_path / "x.json", values, ascii_only=False)
    text = (tmp_path / "x.json").read_text(encoding="utf-8")
    assert text == '{\n "a": "\\u001b[2J\\u009b\\u202eé\\u2069"\n}\n'
    assert json.loads(text) == values


@pytest.mark.parametrize("values", [{"a": float("nan")}, {"a": float("inf")}])
def test_what_json_cannot_hold_leaves_the_old_file(tmp_path: Path, values: dict) -> None:
    (tmp_path / "x.json").write_text("old")
    with pytest.raises(ValueError):
        write_json(tmp_path / "x.json", values, ascii_only=False)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_no_space_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    (tmp_path / "x.json").write_text("old")
    with pytest.raises(OSError, match="No space left"):
        write_json(tmp_path / "x.json", {"a": 1})
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]
