"""Nothing slow is imported where a name alone is asked for. (Which room may import which: test_architecture.py.)"""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("kquant_cli", ("torch", "transformers")),
        ("kquant_cli.calibration", ("transformers",)),
        ("kquant_cli.compress.preparation", ("transformers",)),
        ("kquant_cli.compress.plan", ("transformers",)),
        ("kquant_cli.hf.limits, kquant_cli.hf.tokens, kquant_cli.hf.quiet, kquant_cli.hf.failures", ("transformers",)),
        ("kquant_cli.allocation", ("transformers",)),
    ],
)
def test_importing_is_light(module: str, absent: tuple[str, ...]) -> None:
    code = f"import sys, {module}; print([name for name in {absent!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
