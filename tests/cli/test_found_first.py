"""What cannot be written or read is found before any work, and odd names are no tracebacks."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kquant_cli.calibration import text_source
from kquant_cli.calibration.text_source import open_source
from kquant_cli.errors import KQuantError
from kquant_cli.files.json_object import write_json


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has it")
@pytest.mark.parametrize("command", ["eval", "bench", "inspect"])
def test_a_full_device_is_found_before_the_model_is_opened(command: str, tmp_path: Path, kquant: Any) -> None:
    run = kquant(command, tmp_path / "no such model", "--json", "/dev/full")
    assert run.code == 2
    assert "--json /dev/full: cannot be written (No space left on device)" in " ".join(run.err.split())


@pytest.mark.parametrize("command", ["eval", "bench", "inspect"])
def test_a_place_that_is_a_file_is_found_first(command: str, tmp_path: Path, kquant: Any) -> None:
    (tmp_path / "file").write_text("x")
    run = kquant(command, tmp_path / "no such model", "--json", tmp_path / "file" / "out.json")
    assert run.code == 2
    assert "out.json: cannot be written" in " ".join(run.err.split())
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("command", [("eval",), ("generate", "-p", "hi"), ("bench",)])
def test_what_is_no_model(command: tuple[str, ...], tmp_path: Path, kquant: Any) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    extra = ("--task", "demo") if command[0] == "eval" else ()
    places = [tmp_path / "pipe", tmp_path / "file", tmp_path / "folder", "/dev/zero", "/dev/null"]
    places += ["a\0b", "a\udcffb"] if command[0] == "eval" else []  # of which the hub's library is asked
    for place in places:
        run = kquant(command[0], place, *command[1:], *extra, "--device", "cpu")
        assert run.code == 2, place
        assert "error:" in run.err
        assert "Traceback" not in run.err


def test_calibration_texts_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "nul.txt").write_text("abc\n\0")
    (tmp_path / "long.txt").write_text("abc " * 100)
    monkeypatch.setattr(text_source, "MOST_BYTES", 100)
    for name, says in (
        (tmp_path / "pipe", "it is no plain file"),
        (Path("/dev/zero"), "it is no plain file"),
        (tmp_path / "nul.txt", r"line 2 has the control character U\+0000"),
        (tmp_path / "long.txt", "has more than 100 bytes"),
        (Path("a\0b"), "null"),
        (Path("a\ud800b"), "cannot be read"),
    ):
        with pytest.raises(KQuantError, match=says):
            open_source(str(name))


def test_half_a_character_is_written_as_json_has_it(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"model": "a\ud800b\udcff", "é": 1}, ascii_only=False)
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"model": "a\ud800b\udcff", "é": 1}
    assert "é" in (tmp_path / "a.json").read_text(encoding="utf-8")


def test_names_that_are_no_utf8(tmp_path: Path, opt: Path) -> None:
    """As a shell gives them; in a process, whose streams are those of a terminal."""
    text = os.fsencode(tmp_path) + b"/t\xff.txt"
    Path(os.fsdecode(text)).write_text("The lighthouse keeper lit the lamp. " * 300)
    out = os.fsencode(tmp_path) + b"/o\xfe.json"
    command = [
        sys.executable,
        "-m",
        "kquant_cli",
        "eval",
        str(opt),
        "--task",
        "text",
        "--device",
        "cpu",
        "--limit",
        "1",
    ]
    ended = subprocess.run([*command, "--data", text, "--json", out], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "t\udcff.txt" in json.loads(Path(os.fsdecode(out)).read_text())["results"][0]["data"]
