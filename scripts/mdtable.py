"""What the blocks of measured figures are made of: a Markdown table, and the machine in words."""

from __future__ import annotations

from typing import Any


def place(machine: dict[str, Any]) -> str:
    """The machine in a few words."""
    return f"{machine.get('gpu') or machine['cpu']}, {machine['cores']} cores, torch {machine['torch']}"


def escaped(text: str) -> str:
    """Text for a cell: a bar would end it."""
    return text.replace("|", "\\|")


def table(headings: list[str], rows: list[list[str]], align: str = "r") -> str:
    """A Markdown table; all columns but the first are right-aligned, or none with `align` "l"."""
    rule = "|---" + ("|---:" if align == "r" else "|---") * (len(headings) - 1) + "|"
    lines = ["| " + " | ".join(headings) + " |", rule]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])
