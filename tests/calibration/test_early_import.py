"""transformers imported in a thread: there when the block ends, and not where it is not wanted."""

import subprocess
import sys

import pytest

CODE = """
import sys, threading
from kquant_cli.calibration import import_early
threads = []
with import_early({wanted}):
    threads += [thread.name for thread in threading.enumerate()]
left = [thread.name for thread in threading.enumerate() if thread.name == "kquant-import"]
print("kquant-import" in threads, "kquant_cli.calibration.lazy_model" in sys.modules, "scipy" in sys.modules, left)
"""


@pytest.mark.parametrize("wanted", [True, False])
def test_it_is_imported_when_the_block_ends_where_it_is_wanted(wanted):
    words = [sys.executable, "-c", CODE.format(wanted=wanted)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"{wanted} {wanted} False []"


def test_its_errors_are_left_to_who_imports_it_then():
    block = "sys.modules['transformers'] = None"
    code = CODE.format(wanted=True).replace("threads = []", f"threads = []; {block}")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split()[1:] == ["False", "False", "[]"]  # its thread may have ended before it was looked for
    assert not done.stderr
