"""Measured sensitivities are used again where they fit, and only there."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kquant_cli.calibration import sensitivity_cache
from kquant_cli.calibration.sensitivity_cache import load_or_measure
from kquant_cli.checkpoint import Checkpoint, Matrix
from kquant_cli.errors import KQuantError

CHECKPOINT = Checkpoint(Path("nowhere"), "model", None, {}, {}, {}, ())
MATRICES = tuple(Matrix(name, f"{name}.weight", (4, 4), transposed=False) for name in ("h.1.a", "h.0.a"))
Ask = Callable[..., tuple[dict[str, float], bool, list[str]]]


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Ask:
    """Ask for sensitivities; the answer, whether they were measured, and what was said."""
    measured: list[int] = []

    def measure(_checkpoint: object, matrices: Any, _source: str, **options: Any) -> dict[str, float]:
        measured.append(options["seed"])
        options["say"]("a note")
        return {m.name: 0.1 + i for i, m in enumerate(matrices)}

    monkeypatch.setattr(sensitivity_cache, "measure_sensitivity", measure)

    def run(
        matrices: Any = MATRICES, source: str = "data-free", **options: Any
    ) -> tuple[dict[str, float], bool, list[str]]:
        measured.clear()
        said: list[str] = []
        options = {"file": tmp_path / "kept" / "sensitivity.json", "fingerprint": "f", "seed": 3, **options}
        return load_or_measure(CHECKPOINT, matrices, source, say=said.append, **options), measured == [3], said

    return run


def test_the_second_time_nothing_is_measured(ask: Ask, tmp_path: Path) -> None:
    expected = {"h.1.a": 0.1, "h.0.a": 1.1}
    assert ask() == (expected, True, ["a note"])
    assert ask() == (expected, False, ["a note"])
    assert list(ask()[0]) == list(expected)
    assert [file.name for file in (tmp_path / "kept").iterdir()] == ["sensitivity.json"]
    values = json.loads((tmp_path / "kept" / "sensitivity.json").read_text())
    assert {"fingerprint", "source", "tokens", "eps", "sensitivities"} <= values.keys()


def test_whatever_differs_is_measured_anew(ask: Ask, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("one")
    for change in (
        {"fingerprint": "g"},
        {"tokens": 7},
        {"eps": 0.5},
        {"matrices": MATRICES[:1]},
        {"source": str(text)},
    ):
        ask()
        assert ask(**change)[1]
        assert not ask(**change)[1]
    text.write_text("two")
    assert ask(source=str(text))[1]


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda _: "",
        lambda _: "[]",
        lambda _: '{"sensitivities":' * 100_000,
        lambda _: "\xff",
        lambda text: text.replace("1.1", "1.2"),
        lambda text: text.replace("a note", "another note"),
        lambda text: text.replace('"sha256"', '"sha257"'),
        lambda text: text.replace("1.1", "-1.1"),
        lambda text: text.replace("1.1", "NaN"),
        lambda text: text.replace("1.1", '"1.1"'),
        lambda text: text.replace('"sensitivities"', '"other"'),
    ],
)
def test_a_damaged_file_is_measured_anew(damage: Callable[[str], str], ask: Ask, tmp_path: Path) -> None:
    expected, _, _ = ask()
    file = tmp_path / "kept" / "sensitivity.json"
    file.write_text(damage(file.read_text()), encoding="latin-1")
    found, measured, said = ask()
    assert (found, measured) == (expected, True)
    assert said == [
        f"the sensitivities in {file} are damaged, or of other settings or weights, and are measured again",
        "a note",
    ]
    assert ask() == (expected, False, ["a note"])


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_what_is_no_plain_file_is_in_the_way(make: Callable[[Path], None], ask: Ask, tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    make(tmp_path / "kept" / "sensitivity.json")
    with pytest.raises(KQuantError, match=r"sensitivity\.json is in the way, and is no plain file: move it"):
        ask()


def test_a_place_that_cannot_be_written_is_told(ask: Ask, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(KQuantError, match=r"the sensitivities cannot be written there .*; make room, or choose"):
        ask(file=tmp_path / "file" / "sensitivity.json")


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_no_space_is_told_and_leaves_the_old_file(
    ask: Ask, tmp_path: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask()
    (file,) = (tmp_path / "kept").iterdir()
    before = file.read_bytes()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os if step == "fsync" else Path, step, full)
    with pytest.raises(KQuantError, match=r"cannot be written there \(No space left on device\); make room"):
        ask(fingerprint="g")
    assert [(f, f.read_bytes()) for f in (tmp_path / "kept").iterdir()] == [(file, before)]


def test_a_text_that_is_not_there_is_told_before_anything_is_measured(ask: Ask, tmp_path: Path) -> None:
    with pytest.raises(KQuantError, match=r"none\.txt cannot be read .*check the path"):
        ask(source=str(tmp_path / "none.txt"))
