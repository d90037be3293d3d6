"""What a kept evaluation holds, with its types, so that another file is refused before anything of it is shown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

Word = Annotated[str, Field(max_length=20_000)]
Count = Annotated[int, Field(ge=0, lt=1 << 63)]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class _Estimate(_Part):
    value: float | None
    standard_error: float | None


class _Against(_Part):
    model: Word = ""
    model_kind: Word = ""
    per: Word = ""
    metrics: dict[Word, float | None]
    differences: dict[Word, _Estimate]
    kl_divergence: _Estimate | None = None
    agreement: Annotated[float, Field(ge=0, le=1)] | None = None


class _Entry(_Part):
    task: Word
    measured: Word
    sentence: Word
    model: Word = ""
    model_kind: Word = ""
    metrics: Annotated[dict[Word, float | None], Field(max_length=1000)]
    counts: Annotated[dict[Word, Count], Field(max_length=1000)]
    standard_errors: dict[Word, float | None] | None = None
    seconds: Annotated[float, Field(ge=0, lt=1e12)] = 0.0
    fingerprint: Word | None = None
    against: _Against | None = None


def garbled(entry: Mapping[str, Any]) -> str:
    """The first key that is missing or of another kind than `keep_result` writes, as a path with dots; "" for none."""
    try:
        _Entry.model_validate(dict(entry))
    except ValidationError as error:
        return ".".join(map(str, error.errors()[0]["loc"]))[:200]
    return ""
