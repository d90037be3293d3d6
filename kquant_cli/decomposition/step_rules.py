"""Rules: which of the two parts, u or v, takes the next sign step.

A rule is a function of the iteration (from 0) and of the l1 norms of the residual in the coordinates of u and of v; it
answers True where the step goes into v. The norms are numbers, or tensors with one entry a vector: a rule must work
elementwise. To add a rule, write its function and name it in `RULES`.
"""

from collections.abc import Callable

from torch import Tensor

from kquant_cli.errors import KQuantError
from kquant_cli.suggestions import near

Norm = float | Tensor
Rule = Callable[[int, Norm, Norm], bool | Tensor]


def greedy(iteration: int, l1_u: Norm, l1_v: Norm) -> bool | Tensor:
    """The larger l1 norm, which removes the most energy (arXiv 2404.09737, "Matrix Decomposition Kashin Algorithm")."""
    return l1_v >= l1_u


def alternating(iteration: int, l1_u: Norm, l1_v: Norm) -> bool | Tensor:
    """Blocks of four: two steps into u, then two into v (arXiv 2609.11687, algorithm 1)."""
    return iteration % 4 >= 2


RULES: dict[str, Rule] = {"greedy": greedy, "alternating": alternating}


def find_rule(name: str) -> Rule:
    """The rule of that name; raises KQuantError with the nearest names for any other."""
    if name not in RULES:
        meant = near(name, RULES, cutoff=0.4) or sorted(RULES)
        raise KQuantError(f"Unknown rule {name!r} of the decomposition: use {' or '.join(map(repr, meant))}.")
    return RULES[name]


def likely_side(rule: Rule, iteration: int, sides: list[bool]) -> bool:
    """Guess which side the rule will choose, from the `sides` chosen so far (at least one).

    Like the predictor of a processor's branches: the side that followed when the longest stretch of the latest sides,
    of 8 at most, was last seen; without one, the other side. A rule that does not look at the norms is guessed exactly.
    """
    guess = not sides[-1]
    history = bytes(sides)
    for length in range(min(8, len(history) - 1), 0, -1):
        seen = history.rfind(history[-length:], 0, -1)
        if seen >= 0:
            guess = sides[seen + length]
            break
    return bool(rule(iteration, float(not guess), float(guess)))
