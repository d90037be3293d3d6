"""SIGKILL: before every call that changes a file, halfway through every write, and at random times."""

from __future__ import annotations

from torture_kinds.calls import Log
from torture_kinds.judge import BadError, Tree, difference, is_right, require_equal, require_untouched, tree
from torture_kinds.kind import Case, Kind
from torture_kinds.process import Outcome, kquant, run
from torture_kinds.world import HOSTILE, SCENARIOS, Scenario, World, killing

LONGEST = 1.5  # seconds until a random kill


def require_right_end(case: Case, scenario: Scenario, when: str) -> str:
    """Run the command undisturbed and compare all there is with what it leaves where nothing happened before.

    What was finished before may be refused, since it is there; but nothing may be left beside it.
    """
    expected = case.world.ends[scenario.name]
    outcome = run(kquant(*scenario.args), case.folder)
    if is_right(outcome, f"{scenario.name} after {when}"):
        require_equal(tree(case.folder), expected, f"{scenario.name} after {when}")
        return "right"
    if why := difference(tree(case.folder), expected):
        sentence = outcome.err.strip().splitlines()[-1]
        raise BadError(f"{scenario.name} after {when} is refused ({sentence[:160]}), and {why}")
    return "refused"


def judged(case: Case, scenario: Scenario, outcome: Outcome, before: Tree, when: str) -> str:
    """Judge a run that was disturbed; whether it ended well or was refused, the same command then ends right.

    What it could not remove at its end may be left, if the next run removes it.
    """
    right = is_right(outcome, f"{scenario.name} with {when}")
    found = tree(case.folder)
    if right and found == case.world.ends[scenario.name]:
        return "right"
    require_untouched(found, before, scenario.output, f"{scenario.name} with {when}")
    require_right_end(case, scenario, when)
    return "right" if right else "refused"


def _cases(world: World) -> list[tuple[Scenario, int]]:
    found = [SCENARIOS[name] for name in HOSTILE]
    return [(scenario, n) for scenario in found for n in range(world.calls[scenario.name, "halves"])]


def _before_a_call(case: Case) -> str:
    scenario, number = _cases(case.world)[case.number]
    case.world.begin(scenario, case.folder)
    log = Log()
    run(kquant(*scenario.args), case.folder, inside=killing(case.folder, log, number))
    return require_right_end(case, scenario, f"a kill before {log.last}")


def _at_random(case: Case) -> str:
    scenario = SCENARIOS[case.draw.choice(HOSTILE)]
    case.world.begin(scenario, case.folder)
    times = [case.draw.uniform(0, LONGEST) ** 2 / LONGEST for _ in range(case.draw.randint(1, 4))]
    for seconds in times:
        outcome = run(kquant(*scenario.args), case.folder, limit=seconds)
        if not outcome.late and not is_right(outcome, scenario.name) and not _is_there(case, scenario):
            raise BadError(f"{scenario.name} after kills is refused: {outcome.err[-300:]!r}")
    return require_right_end(case, scenario, "kills after " + ", ".join(f"{t:.2f} s" for t in times))


def _is_there(case: Case, scenario: Scenario) -> bool:
    """Whether the output is what it should be, so that a refusal is right."""

    def output(found: Tree) -> Tree:
        return {name: value for name, value in found.items() if name.startswith(f"{scenario.output}/")}

    return output(tree(case.folder)) == output(case.world.ends[scenario.name])


KILLS = Kind(
    "kills",
    "SIGKILL before every call that changes a file, and halfway through every write, of `compress` (fresh, over "
    "another bundle, going on, on own text, to an average of bits) and `decompress`; then the same command again",
    _before_a_call,
    lambda world: len(_cases(world)),
)
RANDOM_KILLS = Kind(
    "random-kills", "SIGKILL at random times, up to four in a row; then the same command again", _at_random
)
