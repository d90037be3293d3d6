"""Models in turns, each in a process of its own: the order, what is kept of the rounds, and how a process may end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import light_measurements
import pytest

from kquant_cli.errors import KQuantError
from kquant_cli.speed import Measurement, Row, Workload, bench

turns = import_module("kquant_cli.speed.bench")  # whose name in the package is the function's
ROWS = [Row("a", "bundle", "auto"), Row("b", "dense", "bfloat16")]


def measurement(**values: Any) -> Measurement:
    given: dict[str, Any] = dict.fromkeys(Measurement.__dataclass_fields__, 1.0) | {"dtype": "float32", "device": "cpu"}
    given |= {"loaded_memory": 10, "peak_memory": 20, "parameter_bytes": 4, "weight_bytes_per_token": 8}
    return Measurement(**given | values)


def test_rows_take_turns_and_medians_of_rates_and_the_largest_memory_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = iter([(5.0, 30), (1.0, 1), (9.0, 10), (2.0, 3), (6.0, 20), (7.0, 2)])  # of a, b, a, b, a, b
    asked, said = [], []

    def one(row: Row, device: str, workload: Workload) -> Measurement:
        asked.append((row.path, device, workload))
        rate, memory = next(rates)
        # Of b no memory is known in one round, as where the system does not tell.
        known = None if (row.path, memory) == ("b", 1) else memory
        return measurement(decode_tokens_per_second=rate, bandwidth=10 * rate, loaded_memory=known, peak_memory=memory)

    monkeypatch.setattr(turns, "_in_a_process", one)
    a, b = bench(ROWS, "cpu", workload := Workload(8, 2), 3, said.append)
    assert asked == [(name, "cpu", workload) for name in "ababab"]
    assert said[:3] == ["round 1 of 3: a (bundle, auto)", "round 1 of 3: b (dense, bfloat16)", f"round 2{said[2][7:]}"]
    assert (a.decode_tokens_per_second, a.bandwidth, a.loaded_memory, a.peak_memory) == (6, 60, 30, 30)
    assert (b.decode_tokens_per_second, b.bandwidth, b.loaded_memory, b.peak_memory) == (2, 20, None, 3)
    assert (a.dtype, a.parameter_bytes, a.floor_tokens_per_second) == ("float32", 4, 7.5)


@pytest.mark.parametrize(
    ("measure", "sentence"),
    [
        (light_measurements.refuse, "^a cannot be measured$"),
        (light_measurements.die, "the process that measured a ended: most often memory ran out"),
    ],
)
def test_what_ends_a_process_is_one_sentence(measure: Any, sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    workload: Any = light_measurements.Workload()
    monkeypatch.setattr(turns, "measure", measure)
    with pytest.raises(KQuantError, match=sentence):
        bench(ROWS, "cpu", workload, 1, lambda line: None)


COMMAND = """
import sys
import light_measurements
sys.modules["kquant_cli.speed.measure"] = light_measurements
from kquant_cli.cli import main
main(sys.argv[1:])
"""


@pytest.mark.skipif(os.name != "posix", reason="a terminal's Ctrl-C is a signal to the group of processes")
@pytest.mark.parametrize("when", ["round 1 of 1000", "importing", "measuring"])
def test_ctrl_c_ends_it_without_a_trace(when: str, demo_bundle: Path) -> None:
    listen = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a job in the background ignores it by default
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "IMPORTS_SLOWLY": "1"}
    command = [sys.executable, "-c", COMMAND, "bench", str(demo_bundle), "--rounds", "1000"]
    settings: dict[str, Any] = {"start_new_session": True, "preexec_fn": listen, "env": environment}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **settings)
    assert process.stderr is not None
    while not (line := process.stderr.readline()).startswith(when):
        assert line, "it ended"
    if not line.startswith("round"):  # its own process gets the signal first, and time to say something
        os.kill(int(line.split()[-1]), signal.SIGINT)
        time.sleep(0.3)
    os.killpg(process.pid, signal.SIGINT)
    rest = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert "Traceback" not in rest
