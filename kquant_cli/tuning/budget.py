"""How long a tuning takes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Budget:
    """So many steps; or, where there is no number, as many as fit into the minutes, and no more than `most`."""

    minutes: float
    steps: int | None = None
    most: int = 1000
