"""What a process may have, told from the limits that are set: the same from run to run."""

import subprocess
import sys

import psutil
import pytest
import torch

from kquant_cli.calibration import memory

CPU = torch.device("cpu")


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """A tree of control groups; the lines of /proc/self/cgroup lead into it."""
    monkeypatch.setattr(memory, "GROUPS", tmp_path)
    return tmp_path


def limits(lines):
    return [found for file in memory._group_files(lines) if (found := memory._number(file)) is not None]


def test_the_limits_of_a_group_and_of_those_that_it_is_in(groups):
    (groups / "a" / "b").mkdir(parents=True)
    (groups / "a" / "memory.max").write_text("5000\n")
    (groups / "a" / "b" / "memory.max").write_text("max\n")
    assert limits(["0::/a/b"]) == [5000]
    (groups / "a" / "b" / "memory.max").write_text("4000\n")
    assert sorted(limits(["0::/a/b"])) == [4000, 5000]
    assert limits(["0::/elsewhere"]) == []


def test_the_limits_of_version_1(groups):
    (groups / "memory" / "docker").mkdir(parents=True)
    (groups / "memory" / "docker" / "memory.limit_in_bytes").write_text("7000")
    assert limits(["3:cpu,cpuacct:/docker", "4:memory:/docker"]) == [7000]


def test_the_least_of_all_limits_counts(monkeypatch):
    monkeypatch.setattr(memory, "_group_limits", lambda: [1 << 60])
    monkeypatch.setattr(memory, "_process_limits", list)
    assert memory.memory_limit(CPU) == psutil.virtual_memory().total
    monkeypatch.setattr(memory, "_group_limits", lambda: [1 << 60, 3000])
    assert memory.memory_limit(CPU) == 3000


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such limits")
def test_the_limit_of_ulimit():
    code = (
        "import resource as r; r.setrlimit(r.RLIMIT_AS, (1 << 40, 1 << 40)); import kquant_cli.calibration.memory as m;"
    )
    done = subprocess.run(
        [sys.executable, "-c", code + "print(m._process_limits())"], capture_output=True, text=True, check=False
    )
    assert done.stdout == f"[{1 << 40}]\n", done.stderr
