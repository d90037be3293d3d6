"""What a report needs of a bundle's manifest, with its types, so that a damaged one is refused before it is used."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kquant_cli.errors import KQuantError

Count = Annotated[int, Field(ge=0, lt=1 << 63)]
Size = Annotated[int, Field(ge=1, lt=1 << 31)]
Error = Annotated[float, Field(ge=0, le=1e9)]  # relative to the weight: 1 where nothing of it is left
Extent = Annotated[float, Field(ge=0, le=1e30)]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class _Source(_Part):
    name: str
    revision: str | None


class _Totals(_Part):
    parameters: Count
    source_bytes: Count
    bytes: Count
    encoded_weights: Count
    encoded_bytes: Count


class _Matrix(_Part):
    shape: Annotated[list[Size], Field(min_length=2, max_length=2)]
    bytes: Count
    encoder: str
    levels: Annotated[int, Field(ge=2, le=256)]
    basis: str | None
    iterations: Count
    converged: bool | None
    outcome: str
    trace: list[float]
    u_max: Extent | None
    v_max: Extent | None
    relative_error: Error
    metric_loss: float | None = None  # of matrices that were encoded in a calibration's metric
    notes: list[str]


class _Group(_Part):
    members: list[str]


class _Statistics(_Part):
    source: str
    tokens: Count = 0
    groups: list[_Group] = []


class _Divergence(_Part):
    before: float | None  # null: it was not finite
    after: float | None


class _Tuning(_Part):
    steps: Count
    tokens: Count
    tuned: Count
    held_out_divergence: _Divergence


class _Allotted(_Part):
    levels: Count


class _Allocation(_Part):
    target_bits: Extent
    reached_bits: Extent
    sensitivities: str
    matrices: dict[str, _Allotted]


class _Manifest(_Part):
    source: _Source
    totals: _Totals
    matrices: dict[str, _Matrix]
    notes: list[str]
    settings: dict[str, Any]
    versions: dict[str, Any]
    statistics: _Statistics | None = None  # bundles made before there were statistics have none
    allocation: _Allocation | None = None
    tuning: _Tuning | None = None


def check_manifest(file: Path, manifest: Mapping[str, Any]) -> None:
    """Raise KQuantError, naming `file` and the first bad entry, when the manifest lacks or garbles something."""
    try:
        _Manifest.model_validate(dict(manifest))
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))[:500]
        raise KQuantError(f"{file}: lacks or garbles {where}; the bundle is damaged, make it again") from error
