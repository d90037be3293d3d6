"""Two processes at once with one output: one has it, the other is told so, or finds it finished."""

from __future__ import annotations

import re
import time

from torture_kinds.judge import BadError, difference, is_right, require_equal, tree
from torture_kinds.kind import Case, Kind
from torture_kinds.process import Outcome, Running, kquant, run
from torture_kinds.world import SCENARIOS

PAIRS = [  # all start from the first one's start
    ("compress", "compress"),
    ("compress", "compress another"),
    ("compress", "compress another with --overwrite"),
    ("compress with --overwrite", "compress another with --overwrite"),
    ("compress with --overwrite", "compress with --overwrite"),
    ("compress on own text", "compress on own text"),
    ("compress to an average of bits", "compress to an average of bits"),
    ("resume", "resume"),
    ("resume", "compress another with --overwrite"),
    ("compress", "decompress"),
    ("decompress", "decompress"),
    ("decompress", "decompress to float16"),
    ("decompress with --overwrite", "decompress with --overwrite"),
]
FOUND = re.compile(r"other settings|exists|is not a kquant bundle")  # by one that came when all was done


def _pair(case: Case) -> str:
    names = list(case.draw.choice(PAIRS))
    case.world.begin(SCENARIOS[names[0]], case.folder)
    case.draw.shuffle(names)
    scenarios = [SCENARIOS[name] for name in names]
    offset = case.draw.uniform(0, 0.4) * case.draw.choice((0, 1))
    first = Running(kquant(*scenarios[0].args), case.folder)
    time.sleep(offset)
    second = Running(kquant(*scenarios[1].args), case.folder)
    what = f"{names[0]} and, {offset:.2f} s later, {names[1]}"
    outcomes = [first.wait(), second.wait()]
    well = [
        is_right(outcome, f"{what}: the {place}") for outcome, place in zip(outcomes, ("first", "second"), strict=True)
    ]
    if not any(well):
        raise BadError(f"{what}: both are refused: {outcomes[0].err[-200:]!r}, {outcomes[1].err[-200:]!r}")
    for other, outcome, ended_well in zip(reversed(outcomes), outcomes, well, strict=True):
        if not ended_well:
            _require_reason(outcome, other, what)
    found = tree(case.folder)
    ends = [case.world.ends[name] for name, ended_well in zip(names, well, strict=True) if ended_well]
    if found not in ends:
        raise BadError(f"{what}: the output is neither's: {' / '.join(str(difference(found, end)) for end in ends)}")
    winner = scenarios[0] if found == case.world.ends[names[0]] else scenarios[1]
    is_right(run(kquant(*winner.args), case.folder), f"{what}; then {winner.name} again")
    require_equal(tree(case.folder), found, f"{what}; then {winner.name} again")
    return "right" if all(well) else "refused"


def _require_reason(outcome: Outcome, other: Outcome, what: str) -> None:
    """BadError unless a refusal says which process has the output, or that something was there."""
    if str(other.pid) not in outcome.err and not FOUND.search(outcome.err):
        raise BadError(f"{what}: a refusal does not name the process that has it: {outcome.err[-300:]!r}")


KIND = Kind(
    "pairs",
    "two commands at once with one output (equal, of other settings, `--overwrite`, `compress` and `decompress`), "
    "the second up to 0.4 s later",
    _pair,
)
