"""scripts/gpu_check.sh without a GPU: its arguments, and a fake Python to see limits, logs, rows and exit codes."""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(shutil.which("timeout") is None, reason="a shell script that needs timeout")

# What the script asks of Python, answered in a moment: MISSING, SLOW and FAILING name modules and parts.
FAKE = """#!/bin/sh
all="$*"
case $all in
    *gpu_machine.py*) echo "a GPU"; exit "${MACHINE:-0}" ;;
    -c*) for word; do case " $MISSING " in *" $word "*) echo "$word"; exit 1 ;; esac; done; exit 0 ;;
esac
for part in check_gpu_kernels bench_gpu_encoder "-m pytest" bench_gpu_compress bench_gpu_product "kquant_cli bench"; do
    case $all in *"$part"*) found=$part ;; esac
done
echo "$found $all" >>"$CALLS"
case " $SLOW " in *" $found "*) echo "begun"; sleep 60 ;; esac
case " $FAILING " in *" $found "*) echo "wrong"; exit 3 ;; esac
echo "done"
"""
PARTS = ["machine", "kernels", "encoder", "tests", "compress", "product", "generation"]


@pytest.fixture
def check(scripts, tmp_path):
    """Run the script with the fake; what it printed, its code, the rows, and the calls of Python."""
    fake = tmp_path / "python"
    fake.write_text(FAKE)
    fake.chmod(0o755)

    def run(*arguments, python=fake, **variables):
        calls = tmp_path / "calls"
        calls.write_text("")
        environment = {**os.environ, "PYTHON": str(python), "CALLS": str(calls), **variables}
        words = ["bash", str(scripts / "gpu_check.sh"), *map(str, arguments)]
        done = subprocess.run(words, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
        file = tmp_path / "results" / "rows.jsonl"
        rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        return done, {row["part"]: row for row in rows}, calls.read_text().splitlines()

    return run


def test_all_parts_in_the_order_of_their_value(check, tmp_path):
    done, rows, calls = check("results")
    assert done.returncode == 0, done.stderr
    assert list(rows) == PARTS
    assert {row["result"] for row in rows.values()} == {"passed"}
    assert all((tmp_path / "results" / f"{part}.log").exists() for part in PARTS)
    expected = [
        "check_gpu_kernels",
        "bench_gpu_encoder",
        "-m pytest",
        "bench_gpu_compress",
        "bench_gpu_product",
        "kquant_cli",
    ]
    assert all(call.startswith(name) for call, name in zip(calls, expected, strict=True))
    table = done.stdout.splitlines()[-7:]
    assert [line.split()[:2] for line in table] == [[part, "passed"] for part in PARTS]
    assert "--quick" not in "".join(calls)
    assert "--layers 24" in calls[3]


def test_quick_runs_all_parts_with_less_to_do(check):
    done, rows, calls = check("--quick", "results")
    assert done.returncode == 0
    assert list(rows) == PARTS
    assert "--quick" in calls[0]
    assert "--layers 6" in calls[3]
    limits = [int(found) for found in re.findall(r"at most (\d+) s", done.stdout)]
    assert len(limits) == 6
    assert sum(limits) <= 300, "and none gets more than is left of 240"


def test_a_part_that_fails_does_not_stop_the_others(check, tmp_path):
    done, rows, _ = check("results", FAILING="bench_gpu_encoder")
    assert done.returncode == 1
    assert list(rows) == PARTS
    assert (rows["encoder"]["result"], rows["encoder"]["exit"]) == ("FAILED", 3)
    assert [row["result"] for row in rows.values()].count("passed") == 6
    assert (tmp_path / "results" / "encoder.log").read_text() == "wrong\n"


def test_missing_packages_are_a_failure_and_named(check, tmp_path):
    done, rows, calls = check("results", MISSING="pydantic")
    assert done.returncode == 1
    assert rows["encoder"] == rows["encoder"] | {"result": "FAILED", "exit": None}
    assert "needs pydantic" in (tmp_path / "results" / "encoder.log").read_text()
    assert "--wheels FOLDER" in done.stdout
    assert [rows[part]["result"] for part in ("kernels", "product")] == ["passed", "passed"]
    assert not any(call.startswith("bench_gpu_encoder") for call in calls)


def test_packages_that_the_machine_lacks_are_said_at_once(check):
    done, rows, _ = check("results", MACHINE="1")
    assert done.returncode == 1
    assert rows["machine"]["result"] == "FAILED"
    assert rows["kernels"]["result"] == "passed"


def test_without_a_gpu_nothing_is_begun(check, tmp_path):
    done, rows, calls = check("results", MACHINE="2")
    assert (done.returncode, rows, calls) == (2, {}, [])
    assert not (tmp_path / "results").exists()


def test_no_part_gets_more_than_is_left_of_the_whole(check, tmp_path):
    """6 seconds, of which the slow part takes all: the log has what it printed, and the rest is not begun."""
    done, rows, calls = check("results", SLOW="check_gpu_kernels", GPU_CHECK_SECONDS="6")
    assert done.returncode == 1
    assert rows["kernels"]["result"] == "too long"
    assert rows["kernels"]["exit"] == 124
    assert rows["kernels"]["seconds"] <= 8
    assert (tmp_path / "results" / "kernels.log").read_text() == "begun\n"
    assert {rows[part]["result"] for part in PARTS[2:]} == {"no time"}
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--fast"], "--fast is no option"),
        (["--wheels"], "--wheels needs a folder"),
        (["--wheels", "nowhere"], "--wheels needs a folder"),
        (["a", "b"], "one FOLDER"),
    ],
)
def test_wrong_arguments_are_said_with_the_usage(check, arguments, reason):
    done, rows, calls = check(*arguments)
    assert (done.returncode, rows, calls, done.stdout) == (2, {}, [], "")
    assert done.stderr.startswith(reason)
    assert "scripts/gpu_check.sh [--quick] [--wheels FOLDER] [FOLDER]" in done.stderr


def wheel(folder: Path, name: str) -> None:
    """A wheel of one module."""
    folder.mkdir(exist_ok=True)
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as file:
        file.writestr(f"{name}.py", "")
        file.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        file.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        file.writestr(f"{info}/RECORD", "")


def test_wheels_go_into_an_environment_of_their_own_that_sees_the_others(check, tmp_path, monkeypatch):
    """By a sitecustomize in front of the script's Python, which says what it would find."""
    wheel(tmp_path / "wheels", "kquant_wheel_example")
    probe = tmp_path / "probe"
    probe.mkdir()
    (probe / "sitecustomize.py").write_text(
        "import importlib.util as i, os, sys\n"
        "with open(os.environ['CALLS'], 'a') as f:\n"
        "    f.write(f\"{sys.prefix} {bool(i.find_spec('kquant_wheel_example'))} {bool(i.find_spec('torch'))}\\n\")\n"
    )
    done, _, calls = check(
        "--wheels", tmp_path / "wheels", "results", python=Path(sys.executable), PYTHONPATH=str(probe)
    )
    assert done.returncode == 2, "there is no GPU here"
    prefix, example, torch = calls[-1].rsplit(maxsplit=2)
    assert prefix.endswith("/venv")
    assert (example, torch) == ("True", "True")
    assert "kquant_wheel_example" not in sys.modules
    assert not Path(prefix).exists(), "it is gone with the run"


def test_wheels_that_cannot_be_installed_are_said(check, tmp_path):
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels" / "torn-1.0-py3-none-any.whl").write_bytes(b"PK")
    done, _, _ = check("--wheels", tmp_path / "wheels", "results", python=Path(sys.executable))
    assert done.returncode == 2
    assert "cannot be installed" in done.stderr
