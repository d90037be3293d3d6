"""What a kind of hostility is."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torture_kinds.world import World


@dataclass(frozen=True)
class Case:
    """One case: an empty place `folder` (not there yet), its number, and draws that follow from seed and number."""

    world: World
    folder: Path
    number: int
    draw: random.Random


@dataclass(frozen=True)
class Kind:
    """A kind: `run` says "right", "refused" or "died" of a case, or raises BadError.

    `size`: how many cases there are; None where they are drawn, without an end. `about` is for the documents.
    """

    name: str
    about: str
    run: Callable[[Case], str]
    size: Callable[[World], int] | None = None
