"""The error for a bundle that is in order, but whose model cannot compute from codes."""

from __future__ import annotations

from kquant_cli.errors import KQuantError


class CannotRunFromCodesError(KQuantError):
    """The model has a parameter for the matrix, but not one that a layer of ours can take: `reason` says why."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"{reason}; decode it with `kquant decompress`")
        self.reason = reason
