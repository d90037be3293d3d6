"""`--json FILE` and standard output that cannot be written: one sentence, the former before any work."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

QUICK = ("--encoder", "uniform", "--calibration", "none")


@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
@pytest.mark.parametrize("name", ["file/x.json", "x" * 300, "\ud800", "/proc/x.json", "folder"])
def test_results_that_cannot_be_written_are_found_first(kquant, tiny_llama, tmp_path, monkeypatch, name, dry):
    from kquant_cli.compress import plan

    def never(*_: object) -> None:
        raise AssertionError("planned first")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plan, "make_plan", never)
    Path("file").write_text("x")
    Path("folder").mkdir()
    result = kquant("compress", tiny_llama, "-o", "b", *QUICK, "--json", name, *dry)
    assert result.code == 2
    assert "--json" in result.err
    assert {path.name for path in tmp_path.iterdir()} == {"file", "folder"}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("buffered", [{}, {"PYTHONUNBUFFERED": "1"}])
def test_a_full_standard_output_is_one_sentence(tiny_llama, tmp_path, buffered):
    command = [sys.executable, "-m", "kquant_cli", "compress", str(tiny_llama), "-o", str(tmp_path / "b"), *QUICK]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"} | buffered
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*command, "--dry-run"], stdout=full, stderr=subprocess.PIPE, text=True, env=environment, check=False
        )
    assert done.returncode == 2
    assert done.stderr == "error: no space left where the output goes; send it elsewhere\n"


def test_a_reader_that_has_seen_enough_is_no_error():
    command = ["bash", "-c", '"$0" -m kquant_cli --help | head -c 1', sys.executable]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
