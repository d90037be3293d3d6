"""A run that dies before any of its calls to the file system is gone on with by the next, to the same end."""

import json
import os
import subprocess
import sys

import pytest

DRIVER = "faults/die_before.py"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="each run is a fork")
def test_a_kill_before_any_call_is_survived(tmp_path, pytestconfig):
    """Every 29th call; all of them, for minutes, where KQUANT_ALL_KILLS is set."""
    step = 1 if os.environ.get("KQUANT_ALL_KILLS") else 29
    root = pytestconfig.rootpath
    command = [sys.executable, root / "tests" / DRIVER, tmp_path, "--step", step, "--offset", 13]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert {name: kind["bad"] for name, kind in found.items() if kind["bad"]} == {}
    assert min(kind["calls"] for kind in found.values()) > 40
    assert all(kind["tried"] for kind in found.values())
