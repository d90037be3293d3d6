"""Names of blocks, the numbered parts that a model repeats, such as model.layers.7."""

from __future__ import annotations


def block_of(parameter: str) -> str | None:
    """The block of a parameter or module, up to the first number of its name; None where there is none."""
    parts = parameter.split(".")
    number = next((i for i, part in enumerate(parts) if part.isdecimal()), None)
    return None if number is None else ".".join(parts[: number + 1])
