"""What regenerates a basis: its kind, size, seed and options. This, not the matrix, is what a bundle keeps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kquant_cli.errors import KQuantError, shortened

LARGEST = 2**31 - 1  # size, or count of what it is a product of; registry.py bounds what both take together


@dataclass(frozen=True)
class BasisSpec:
    """A basis of `kind` and `size`; equal specs make equal bases on every platform (registry.py: `basis_for`).

    KQuantError where size, seed or an option can be of no basis; which kinds and options there are, the registry knows.
    """

    kind: str
    size: int
    seed: int = 0
    options: Mapping[str, int] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if not _is_whole(self.size) or not 1 <= self.size <= LARGEST:
            raise KQuantError(
                f"basis {shortened(self.kind)} cannot have size {shortened(self.size)}: a size is a whole number from "
                f"1 to {LARGEST}"
            )
        if not _is_whole(self.seed) or not 0 <= self.seed < 2**32:
            raise KQuantError(
                f"basis {shortened(self.kind)} cannot have seed {shortened(self.seed)}: a seed is a whole number from "
                f"0 to 2^32 - 1"
            )
        for name, value in self.options.items():
            if not _is_whole(value) or not 1 <= value <= LARGEST:
                raise KQuantError(
                    f"option {shortened(name)} of basis {shortened(self.kind)} is {shortened(value)}: expected a whole "
                    f"number from 1 to {LARGEST}"
                )
        object.__setattr__(self, "options", dict(self.options))

    def to_dict(self) -> dict[str, Any]:
        """For JSON: kind and size, and seed and options where they are not the default."""
        as_dict: dict[str, Any] = {"kind": self.kind, "size": self.size}
        if self.seed:
            as_dict["seed"] = self.seed
        if self.options:
            as_dict["options"] = dict(self.options)
        return as_dict

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> BasisSpec:
        """The inverse of `to_dict`; KQuantError where a key is missing or unknown, or a value is impossible."""
        unknown = set(values) - {"kind", "size", "seed", "options"}
        if unknown or not {"kind", "size"} <= set(values):
            names = shortened(", ".join(sorted(values))).strip("'\"") or "nothing"
            raise KQuantError(f"a basis is given by kind, size, seed and options, not by {names}")
        options = values.get("options", {})
        if not isinstance(options, Mapping):
            raise KQuantError(
                f"the options of basis {shortened(values['kind'])} are {shortened(options)}: expected names with whole "
                f"numbers"
            )
        return cls(values["kind"], values["size"], values.get("seed", 0), options)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
