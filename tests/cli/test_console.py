"""`--json FILE`: written whole or not at all, and one sentence where it cannot be."""

import errno
import io
import logging
import os
from pathlib import Path

import pytest
from rich.table import Table
from rich.text import Text

from kquant_cli.cli.console import SafeConsole, print_error, printable, show_log, write_results
from kquant_cli.errors import KQuantError


def test_the_file_is_readable_json_in_a_folder_that_is_made(tmp_path: Path) -> None:
    write_results(tmp_path / "a" / "x.json", [{"größe": 1.5}])
    assert (tmp_path / "a" / "x.json").read_text(encoding="utf-8") == '[\n {\n  "größe": 1.5\n }\n]\n'


def test_without_space_the_old_file_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_results(tmp_path / "x.json", {"a": 1})
    before = (tmp_path / "x.json").read_bytes()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(KQuantError, match=r"^--json .*x\.json: cannot be written \(No space left on device\); give an"):
        write_results(tmp_path / "x.json", {"a": 2})
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [before]


@pytest.mark.parametrize(("name", "why"), [("folder", "Is a directory"), ("file/x", "(Not a directory|File exists)")])
def test_a_place_that_cannot_be(tmp_path: Path, name: str, why: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("x")
    with pytest.raises(KQuantError, match=rf"cannot be written \({why}\); give another file"):
        write_results(tmp_path / name, {})


@pytest.mark.skipif(not Path("/dev/null").is_char_device(), reason="needs /dev/null")
def test_a_device_is_not_replaced_by_a_file() -> None:
    write_results(Path("/dev/null"), {"a": 1})
    assert Path("/dev/null").is_char_device()


def test_what_the_library_logs_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    show_log()
    show_log()
    logging.getLogger("kquant_cli").info("compiling [x].cpp")
    assert capsys.readouterr() == ("", "compiling [x].cpp\n")


CONTROLS = "".join(map(chr, [*range(10), *range(11, 32), *range(127, 160)])) + "\u200f\u202a\u202e\u2066\u2069\u061c"


def test_no_character_steers_the_terminal() -> None:
    assert printable("größe\n±×▁ tab") == "größe\n±×▁ tab"
    assert set(printable(CONTROLS)) == {"\ufffd"}


def test_a_console_lets_none_through_and_moves_its_own_cursor() -> None:
    out = io.StringIO()
    console = SafeConsole(file=out, force_terminal=True, color_system=None, width=80)
    table = Table(f"a{CONTROLS}b")
    table.add_row(f"c{CONTROLS}")
    for thing in (f"x{CONTROLS}y", table, Text(CONTROLS)):
        console.print(thing, markup=False)
    assert not set(CONTROLS) & set(out.getvalue())
    console.show_cursor(False)
    assert out.getvalue().endswith("\x1b[?25l")


def test_an_error_is_one_line_of_bounded_length(capsys: pytest.CaptureFixture[str]) -> None:
    print_error(KQuantError("a\x1b[31m [bold]b[/] \n c"))
    assert capsys.readouterr().err == "error: a\ufffd[31m [bold]b[/]   c\n"
    print_error(KQuantError("a" * 1_000_000 + "end"))
    shown = capsys.readouterr().err
    assert len(shown) < 2100
    assert " ... " in shown
    assert shown.endswith("end\n")
