"""What is right: the same files as an undisturbed run leaves, or a clean refusal that leaves things as they were."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from torture_kinds.process import HANGS, Outcome

MOST_SECONDS, MOST_BYTES = 10.0, 2 << 30  # of a refusal
LONGEST_SENTENCE = 1000  # characters
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")
Tree = dict[str, object]


class BadError(Exception):
    """A case that ended neither right nor in a clean refusal; says why."""


def tree(folder: Path) -> Tree:
    """What is in a folder, by relative path: the bytes of files, the targets of links, the kind of all else.

    Left out is what differs from run to run by design: `run.json` and `results/` of a bundle.
    """
    found: Tree = {}
    for entry in _walk(folder):
        name, mode = os.path.relpath(entry, folder), entry.lstat().st_mode
        if stat.S_ISLNK(mode):
            found[name] = f"link to {entry.readlink()}"
        elif stat.S_ISREG(mode):
            found[name] = b"" if name.endswith("/run.json") else entry.read_bytes()
        else:
            found[name] = "folder" if stat.S_ISDIR(mode) else "special"
    return found


def _walk(folder: Path) -> list[Path]:
    found = []
    for parent, folders, files in os.walk(folder):
        if "kquant.json" in files and "results" in folders:
            folders.remove("results")
        found += [Path(parent, name) for name in (*folders, *files)]
    return found


def difference(found: Tree, expected: Tree) -> str | None:
    """The first entries in which two trees differ, in words; None where they are equal."""
    words = []
    for name in sorted(found.keys() | expected.keys()):
        if name not in expected:
            words.append(f"{name!r} is left over")
        elif name not in found:
            words.append(f"{name!r} is missing")
        elif found[name] != expected[name]:
            words.append(f"{name!r} differs")
    return None if not words else "; ".join(words[:4]) + (f" and {len(words) - 4} more" if len(words) > 4 else "")


def require_equal(found: Tree, expected: Tree, when: str) -> None:
    """BadError unless two trees are equal."""
    if why := difference(found, expected):
        raise BadError(f"{when}: {why}")


def require_untouched(found: Tree, before: Tree, output: str, when: str) -> None:
    """BadError unless all is as before but the output folder and what kquant keeps beside it (`output.*`)."""

    def others(entries: Tree) -> Tree:
        return {name: value for name, value in entries.items() if not _is_output(name, output)}

    require_equal(others(found), others(before), when)


def _is_output(name: str, output: str) -> bool:
    top = name.partition("/")[0]
    temporary = f".{output}" in top and top.endswith(".tmp")  # beside the output there should be none
    return top == output or (top.startswith(f"{output}.") and not temporary)


def is_right(outcome: Outcome, what: str) -> bool:
    """Whether it ended well; False: it was refused cleanly. BadError where it is neither."""
    if outcome.late:
        raise BadError(f"{what} hangs: not done after {HANGS:.0f} s; {_end_of(outcome)}")
    if outcome.code == 0:
        if CONTROL.search(outcome.out + outcome.err):
            raise BadError(f"{what} prints control characters: {_shown(outcome)}")
        return True
    require_refusal(outcome, what)
    return False


def require_refusal(outcome: Outcome, what: str) -> None:
    """BadError unless it ended with exit code 2 and one sentence, soon, and in little memory."""
    said = outcome.err
    lines = [line for line in said.splitlines() if line.strip()]
    if outcome.late:
        raise BadError(f"{what} hangs; {_end_of(outcome)}")
    if outcome.code < 0:
        raise BadError(f"{what} dies of signal {-outcome.code}; {_end_of(outcome)}")
    if "Traceback (most recent call last)" in said:
        raise BadError(f"{what} ends in a traceback; {_end_of(outcome)}")
    if outcome.code != 2:
        raise BadError(f"{what} ends with exit code {outcome.code}; {_end_of(outcome)}")
    if outcome.seconds > MOST_SECONDS:
        raise BadError(f"{what} is refused after {outcome.seconds:.0f} s; {_end_of(outcome)}")
    if outcome.peak > MOST_BYTES:
        raise BadError(f"{what} is refused at {outcome.peak / 1e9:.1f} GB; {_end_of(outcome)}")
    if CONTROL.search(outcome.out + said):
        raise BadError(f"{what} prints control characters: {_shown(outcome)}")
    if lines and lines[0].startswith("Usage:"):  # of options, by the library of the command line
        return
    errors = [number for number, line in enumerate(lines) if line.startswith("error: ")]
    if errors != [len(lines) - 1]:
        raise BadError(f"{what} is not refused in one sentence: {_end_of(outcome)}")
    if len(lines[-1]) > LONGEST_SENTENCE:
        raise BadError(f"{what} is refused in {len(lines[-1])} characters: {_end_of(outcome)}")


def _end_of(outcome: Outcome) -> str:
    lines = [line for line in outcome.err.splitlines() if line.strip()]
    place = [line.strip() for line in lines if "kquant_cli" in line and ", line " in line][-1:]
    return repr(" | ".join([*place, *(lines[-2:] if not place else lines[-1:])])[-400:])


def _shown(outcome: Outcome) -> str:
    found = CONTROL.search(outcome.out + outcome.err)
    text = outcome.out + outcome.err
    return repr(text[max(found.start() - 60, 0) : found.end() + 40]) if found else ""
