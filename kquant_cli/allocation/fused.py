"""Matrices that servers put together into one product: of one block, and of one input."""

from __future__ import annotations

from collections.abc import Iterable

FUSED = (
    ("q_proj", "k_proj", "v_proj"),
    ("gate_proj", "up_proj"),
    ("query", "key", "value"),
    ("w1", "w3"),
)


def fused_groups(names: Iterable[str]) -> tuple[tuple[str, ...], ...]:
    """The groups of two or more of `names`, in their order, that one product computes."""
    parent_of = {ending: parts for parts in FUSED for ending in parts}
    groups: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for name in names:
        parent, _, ending = name.rpartition(".")
        if ending in parent_of:
            groups.setdefault((parent, parent_of[ending]), []).append(name)
    return tuple(tuple(group) for group in groups.values() if len(group) > 1)
