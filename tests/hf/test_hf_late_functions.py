"""Functions that stand for a module until they are called, or anything else is asked of it."""

import subprocess
import sys
from pathlib import Path

import pytest

from kquant_cli.hf.late_functions import late_functions

MODULE = "kquant_late_example"


@pytest.fixture
def module(tmp_path, monkeypatch) -> Path:
    """A module of two functions, which is not imported yet."""
    (tmp_path / f"{MODULE}.py").write_text("def double(x):\n    return 2 * x\n\ndef half(x):\n    return x / 2\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    yield tmp_path
    sys.modules.pop(MODULE, None)


def test_the_function_imports_its_module_when_it_is_called(module):
    with late_functions({MODULE: "double"}):
        from kquant_late_example import double
    assert MODULE not in sys.modules
    assert double(4) == 8
    assert sys.modules[MODULE].__file__ == str(module / f"{MODULE}.py")


def test_anything_else_is_the_modules_own(module):
    with late_functions({MODULE: "double"}):
        from kquant_late_example import half

        assert half(4) == 2
        import kquant_late_example

        assert kquant_late_example.__file__ is not None, "it is the real one from here on"
        with pytest.raises(ImportError):
            from kquant_late_example import triple  # noqa: F401


def test_a_module_that_is_there_stays(module):
    import kquant_late_example as real

    with late_functions({MODULE: "double"}):
        assert sys.modules[MODULE] is real
    assert sys.modules[MODULE] is real


UNUSED = ("scipy", "scipy.optimize", "scipy.stats", "sklearn", "datasets", "transformers.trainer")
RUN = """
import sys
from kquant_cli.cli import main
try:
    main(sys.argv[1:])
except SystemExit as stop:
    assert not stop.code
print([name for name in {unused} if name in sys.modules])
"""


def test_a_run_imports_nothing_that_it_does_not_use(tiny_llama, tmp_path):
    command = [
        "compress",
        tiny_llama,
        "-o",
        tmp_path / "b",
        "--device",
        "cpu",
        "--effort",
        "fast",
        "--calibration",
        "random",
    ]
    code = RUN.format(unused=UNUSED)
    words = [sys.executable, "-c", code, *map(str, command)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "random tokens" in done.stdout, "statistics were measured, by transformers"
    assert done.stdout.splitlines()[-1] == "[]"
