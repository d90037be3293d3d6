"""The hostile runs: their judge tells right from bad, and every kind runs (a few cases each, with a fixed seed)."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from torture_kinds import KINDS
from torture_kinds.attacks import sign
from torture_kinds.calls import Calls, Log
from torture_kinds.damage_values import damaged_json
from torture_kinds.judge import BadError, difference, is_right, require_untouched, tree
from torture_kinds.process import Outcome, run

SCRIPTS = Path(__file__).parents[2] / "scripts"


def outcome(code: int = 0, err: str = "", **others: object) -> Outcome:
    values = {"pid": 1, "out": "", "seconds": 0.1, "peak": 1 << 20, "late": False, **others}
    return Outcome(code=code, err=err, **values)  # type: ignore[arg-type]


def test_what_is_right_and_what_is_a_refusal():
    assert is_right(outcome(), "it")
    assert not is_right(outcome(2, "a line of progress\nerror: x.json is damaged\n"), "it")
    assert not is_right(outcome(2, "Usage: kquant [OPTIONS]\n"), "it")


@pytest.mark.parametrize(
    "bad",
    [
        outcome(1, "error: x\n"),
        outcome(-9),
        outcome(2, ""),
        outcome(2, "error: x\nerror: y\n"),
        outcome(2, "Traceback (most recent call last)\nerror: x\n"),
        outcome(2, "error: \x1b[2J\n"),
        outcome(2, f"error: {'x' * 2000}\n"),
        outcome(2, "error: x\n", seconds=11.0),
        outcome(2, "error: x\n", peak=3 << 30),
        outcome(0, out="\u202egnp"),
        outcome(0, late=True),
    ],
)
def test_what_is_bad(bad):
    with pytest.raises(BadError):
        is_right(bad, "it")


def test_trees_tell_what_changed(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "run.json").write_text("1")
    (tmp_path / "other").write_text("1")
    before = tree(tmp_path)
    (tmp_path / "out" / "run.json").write_text("2")
    assert difference(tree(tmp_path), before) is None
    (tmp_path / "out.part").mkdir()
    require_untouched(tree(tmp_path), before, "out", "it")
    (tmp_path / "other").write_text("2")
    (tmp_path / ".out.1.tmp").write_text("2")
    with pytest.raises(BadError, match=r"'\.out\.1\.tmp' is left over; 'other' differs"):
        require_untouched(tree(tmp_path), before, "out", "it")


def test_calls_are_struck_before_they_happen(tmp_path):
    """In a forked process, since an audit hook stays: the third call, a rename, is refused by the system."""
    log = Log()

    def strike(number: int, name: str, path: str) -> None:
        if number == 3:
            raise OSError(errno.EIO, "struck")

    def work() -> None:
        Path("a").write_text("1")  # opened, written
        with Path("a").open("ab", buffering=0) as file:  # opened
            with pytest.raises(OSError, match="struck"):
                file.write(b"2")
            os.fsync(file.fileno())
        Path("a").rename("b")

    done = run(work, tmp_path, inside=lambda: Calls(tmp_path, log, strike).install())
    assert (done.code, done.err) == (0, "")
    assert (log.count, log.last) == (6, "os.rename a")
    assert (tmp_path / "b").read_text() == "1"


def test_a_process_is_watched(tmp_path):
    def work() -> None:
        print("out")
        print(Path.cwd(), file=sys.stderr)
        sys.exit(3)

    done = run(work, tmp_path)
    assert (done.code, done.out, done.err, done.late) == (3, "out\n", f"{tmp_path}\n", False)
    assert run(lambda: print("x" * 200_000), tmp_path).out == "x" * 200_000 + "\n"
    hanging = run(lambda: os.read(os.pipe()[0], 1), tmp_path, limit=0.2)
    assert (hanging.code, hanging.late) == (-9, True)


def test_damage_follows_from_the_seed():
    import random

    text = json.dumps({"a": 1, "b": {"c": [1, 2, "x"]}})
    made = [damaged_json(text, random.Random(seed)) for seed in range(200)]
    assert made == [damaged_json(text, random.Random(seed)) for seed in range(200)]
    assert len(set(made)) > 100


def test_the_program_runs_every_kind(tmp_path):
    command = [sys.executable, SCRIPTS / "torture.py", "--cases", "2", "--seed", "1", "--jobs", "2"]
    done = subprocess.run(
        [*command, "--json", tmp_path / "rows.json"],
        env={**os.environ, "PYTHONPATH": str(SCRIPTS.parent), "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert [row["kind"] for row in rows] == list(KINDS)
    assert all(row["cases"] == row["right"] + row["refused"] + row["died"] == 2 for row in rows), rows


def test_a_manifest_that_has_become_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "kquant.json")
    assert sign(tmp_path) is False
