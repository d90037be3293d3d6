"""What is wrong with a bundle: found by checks that yield one fault after the other.

A reader refuses a bundle for the first, `kquant verify` shows them all: both run the same checks.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from kquant_cli.errors import KQuantError


@dataclass(frozen=True)
class Fault:
    """`name`: the file, tensor or matrix that is wrong; `sentence`: what is wrong with it, and what to do."""

    name: str
    sentence: str


def refuse(faults: Iterable[Fault]) -> None:
    """KQuantError with the sentence of the first fault, where there is one; no more is looked for."""
    for fault in faults:
        raise KQuantError(fault.sentence)
