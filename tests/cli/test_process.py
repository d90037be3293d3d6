"""The command line as a process: how it ends."""

import subprocess
import sys

import pytest

END = """
import atexit, sys
import kquant_cli.__main__ as entry
atexit.register(print, "registered")
def main():
    print("x" * 200_000, flush=False)
    {last}
entry.main = main
entry.run()
"""


@pytest.mark.parametrize(
    ("last", "code", "error"),
    [
        ("pass", 0, ""),
        ("sys.exit(130)", 130, ""),
        ("sys.exit()", 0, ""),
        ("sys.exit('a sentence')", 1, "a sentence"),
        ("raise ValueError('of ours')", 1, "ValueError: of ours"),
    ],
)
def test_all_output_is_there_and_what_was_registered_is_done(last, code, error):
    words = [sys.executable, "-c", END.format(last=last)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert done.stdout.split() == ["x" * 200_000, "registered"]
    assert done.stderr.strip().endswith(error)
    assert bool(done.stderr) == bool(error)


def test_a_closed_pipe_is_no_success(tmp_path):
    """Nobody reads what is printed: as with any program of Python, the exit code is not 0."""
    code = END.format(last="pass")
    command = f'{sys.executable} -c "$CODE" 2>{tmp_path / "error"}; echo $? >{tmp_path / "code"}'
    process = subprocess.Popen(
        ["sh", "-c", command], env={"CODE": code, "PATH": "/bin:/usr/bin"}, stdout=subprocess.PIPE
    )
    process.stdout.close()
    process.wait()
    assert int((tmp_path / "code").read_text()) != 0


def test_modules_are_not_taken_apart():
    """What is freed while Python ends would print this."""
    code = END.format(last="sys.modules['kept'] = type('Kept', (), {'__del__': lambda self: print('freed')})()")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "freed" not in done.stdout
