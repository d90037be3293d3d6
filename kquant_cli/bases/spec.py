"""What regenerates a basis: its kind, size, seed and options. This, not the matrix, is what a bundle keeps."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakValueDictionary

from kquant_cli.bases.basis import Basis
from kquant_cli.bases.registry import BASES
from kquant_cli.errors import KQuantError
from kquant_cli.suggestions import near

KEPT = 4  # bases that stay in memory with nobody using them: `qr` of 8192 is 512 MB


@dataclass(frozen=True)
class BasisSpec:
    """A basis of `kind` and `size`; equal specs make equal bases on every platform. KQuantError if impossible."""

    kind: str
    size: int
    seed: int = 0
    options: Mapping[str, int] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if self.kind not in BASES:
            meant = near(str(self.kind), BASES) or sorted(BASES)
            raise KQuantError(f"unknown basis '{self.kind}': did you mean {' or '.join(map(repr, meant))}?")
        if not _is_whole(self.size) or self.size < 1:
            raise KQuantError(f"basis '{self.kind}' cannot have size {self.size!r}: a size is a whole number from 1 up")
        if not _is_whole(self.seed) or not 0 <= self.seed < 2**32:
            raise KQuantError(
                f"basis '{self.kind}' cannot have seed {self.seed!r}: a seed is a whole number from 0 to 2^32 - 1"
            )
        known = BASES[self.kind].options
        for name, value in self.options.items():
            if name not in known:
                allowed = f"its options are {', '.join(known)}" if known else "it has none"
                raise KQuantError(f"basis '{self.kind}' has no option '{name}': {allowed}")
            if not _is_whole(value) or value < 1:
                raise KQuantError(
                    f"option '{name}' of basis '{self.kind}' is {value!r}: expected a whole number from 1 up"
                )
        object.__setattr__(self, "options", dict(self.options))

    def make(self) -> Basis:
        """The basis; the same object as before while somebody uses it or it is among the last few made."""
        key = (self.kind, self.size, self.seed, tuple(sorted(self.options.items())))
        basis = _alive.get(key)
        if basis is None:
            basis = _alive[key] = BASES[self.kind](self)
        if basis in _recent:
            _recent.remove(basis)
        _recent.append(basis)
        return basis

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
            raise KQuantError(
                f"a basis is given by kind, size, seed and options, not by {', '.join(sorted(values)) or 'nothing'}"
            )
        options = values.get("options", {})
        if not isinstance(options, Mapping):
            raise KQuantError(
                f"the options of basis '{values['kind']}' are {options!r}: expected names with whole numbers"
            )
        return cls(values["kind"], values["size"], values.get("seed", 0), options)


def make_basis(kind: str, size: int, seed: int = 0, **options: int) -> Basis:
    """A new basis of `kind` (`BASES`) and `size`.

    Raises KQuantError for an unknown kind, option or impossible value, or a size of which the kind has no basis.
    """
    spec = BasisSpec(kind, size, seed, options)
    return BASES[spec.kind](spec)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


_alive: WeakValueDictionary[tuple, Basis] = WeakValueDictionary()
_recent: deque[Basis] = deque(maxlen=KEPT)
