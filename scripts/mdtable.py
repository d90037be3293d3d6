"""What the blocks of measured figures are made of: a Markdown table, and the machine in words."""

from __future__ import annotations

from typing import Any


def place(machine: dict[str, Any]) -> str:
    """The machine in a few words."""
    return f"{machine.get('gpu') or machine['cpu']}, {machine['cores']} cores, torch {machine['torch']}"


def table(headings: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; all columns but the first are right-aligned."""
    lines = ["| " + " | ".join(headings) + " |", "|---" + "|---:" * (len(headings) - 1) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])
