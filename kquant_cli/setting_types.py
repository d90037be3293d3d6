"""What all settings have in common: they are frozen and strict, and YAML's spellings of numbers and lists are taken."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticKnownError, core_schema


class Settings(BaseModel):
    """Settings that do not change, know no other keys, and take no value of another type."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, protected_namespaces=())


@dataclass(frozen=True)
class OneOf:
    """A name of a registry, looked up when a value is checked: Annotated[str, OneOf(lambda: BASES)]."""

    names: Callable[[], Iterable[str]]

    def __get_pydantic_core_schema__(self, _source: Any, _handler: Any) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(self._checked)

    def _checked(self, value: object) -> object:
        names = list(self.names())
        if value not in names:
            *others, last = map(repr, names)
            expected = f"{', '.join(others)} or {last}" if others else last
            raise PydanticKnownError("literal_error", {"expected": expected})
        return value


def _number(value: object) -> object:
    """YAML reads `1e-6` as text; take text that is a number as the number."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return float(value) if type(value) is int else value


def _tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


AsTuple = BeforeValidator(_tuple)
Tolerance = Annotated[float, BeforeValidator(_number), Field(ge=0, lt=1)]
Patterns = Annotated[tuple[str, ...], AsTuple]
Seed = Annotated[int, Field(ge=0, lt=2**32, description="seed of the bases, of k-means++ and of random tokens")]
