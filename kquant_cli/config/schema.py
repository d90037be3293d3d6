"""The schema: settings of one matrix, rules for some of the matrices, and settings of a whole run.

The settings of the encoders are in `options`, a schema that the registry of encoders joins. In YAML, on the command
line and in a bundle's manifest all settings stand side by side, so there `options` is spread out in between.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from kquant_cli.encoders import DEFAULT, ENCODERS, Encoder, EncoderSettings, own_settings, settings_of_all
from kquant_cli.setting_types import AsTuple, OneOf, Patterns, Seed, Settings

COMBINATION = "combination"  # the type of an error of values that are possible one by one
OPTIONS = "options"
DENSE = 16  # `head_bits` that leave input embedding and output head as they are
# How these are encoded otherwise. Measured on SmolLM2-135M (docs/method.md): with 8 bits evenly spaced levels are near
# enough, and their rows are read fast; below, they cost several times the divergence of annealed codes.
AT_8_BITS = {"encoder": "uniform", "group_size": 64}
BELOW_8_BITS = {"encoder": "annealed", "side": "input"}


def _bits(value: object) -> object:
    """A number from 1 to 8; whole ones as integers."""
    if type(value) not in (int, float) or not 1 <= value <= 8:  # type: ignore[operator]
        raise PydanticCustomError("bits", "a number from 1 to 8, whole or, as an average, a fraction such as 3.25")
    return int(value) if value == int(value) else value  # type: ignore[call-overload]


def _head_bits(value: object) -> object:
    """A whole number from 2 to 8, or 16."""
    if type(value) not in (int, float) or value not in (*range(2, 9), DENSE):
        raise PydanticCustomError("head_bits", "whole bits from 2 to 8, or 16 for dense")
    return int(value)  # type: ignore[call-overload]


def encoders_in_words() -> str:
    """The encoders with what they are, for --help."""
    return "; ".join(f"{encoder.name} ({encoder.summary})" for encoder in ENCODERS.values())


class EncoderConfig(Settings):
    """How one matrix is encoded; the settings of the encoders are given side by side with these."""

    encoder: Annotated[str, OneOf(lambda: ENCODERS)] = Field(DEFAULT, description="how a matrix is encoded")
    bits: Annotated[int | float, BeforeValidator(_bits)] = Field(
        4,
        description="bits of a code, 1 to 8, for 2^bits centroids; a fraction such as 3.25 is an average over matrices",
    )
    levels: int | None = Field(
        None, ge=2, le=256, description="centroids of the codebook, 2 to 256, in place of 2^bits: 3, 6 or 12, say"
    )
    seed: Seed = 0
    options: Any = Field(None, validate_default=True)  # an instance of `settings_of_all()`

    @model_validator(mode="before")
    @classmethod
    def _gathered(cls, values: Any) -> Any:
        """The encoders' settings, from beside the others into `options`, which is no key that a user can write."""
        if not isinstance(values, Mapping) or isinstance(values.get(OPTIONS), Settings):
            return values
        known = cls.model_fields.keys() - {OPTIONS}
        others = {key: value for key, value in values.items() if key not in known}
        return {key: value for key, value in values.items() if key in known} | {OPTIONS: others}

    @field_validator(OPTIONS, mode="plain")
    @classmethod
    def _joined(cls, value: Any) -> Settings:
        return settings_of_all().model_validate(value)

    def __reduce__(self) -> tuple[Any, ...]:  # the schema of `options` has no place that pickle could name
        return type(self).model_validate, (self.model_dump(),)

    @model_validator(mode="after")
    def _levels_fit(self) -> EncoderConfig:
        if not self.is_average and (reason := self.refusal(self.level_count)):
            raise PydanticCustomError(COMBINATION, reason)
        return self

    @model_serializer(mode="wrap")
    def _spread_out(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        flat: dict[str, Any] = {}
        for key, value in handler(self).items():
            flat |= value if key == OPTIONS else {key: value}
        return flat

    @property
    def chosen(self) -> Encoder[Any]:
        """The encoder."""
        return ENCODERS[self.encoder]

    @property
    def settings(self) -> EncoderSettings:
        """The settings of the chosen encoder."""
        own = {key: getattr(self.options, key) for key in own_settings(self.chosen)}
        settings: EncoderSettings = self.chosen.Settings(seed=self.seed, **own)
        return settings

    def refusal(self, levels: int) -> str | None:
        """Why the encoder cannot have so many centroids with these settings, as a sentence; None where it can."""
        return self.chosen.refusal(levels, self.settings)

    @property
    def level_count(self) -> int:
        """Centroids of the codebook; ValueError where `bits` is a fraction, which no single matrix can have."""
        if self.is_average:
            raise ValueError(f"{self.bits} bits are an average over matrices, not the bits of one")
        return self.levels or 2 ** int(self.bits)

    @property
    def is_average(self) -> bool:
        """Whether `bits` is an average, so that each matrix is to get a level count of its own."""
        return self.levels is None and self.bits != int(self.bits)

    @property
    def code_bits(self) -> float:
        """log2 of the level count, or the average."""
        return self.bits if self.levels is None else math.log2(self.levels)


class LayerRule(BaseModel):
    """Other settings for the matrices whose name fits `match`: any key of EncoderConfig beside it."""

    model_config = ConfigDict(frozen=True, extra="allow")
    match: str = Field(description="pattern on the matrix's name, such as *.fc2")

    def fits(self, name: str) -> bool:
        """Whether `match`, with or without its ending .weight, fits the module name."""
        return fnmatchcase(name, self.match.removesuffix(".weight"))

    @property
    def has_own_bits(self) -> bool:
        """Whether it says how many levels a matrix gets, or of which encoder."""
        return not {"bits", "levels", "encoder"}.isdisjoint(self.model_extra or {})

    def apply(self, base: EncoderConfig) -> EncoderConfig:
        """The settings of `base` with this rule's in their place; raises pydantic's ValidationError."""
        return EncoderConfig.model_validate(changed(base.model_dump(), self.model_extra or {}))


class CompressConfig(EncoderConfig):
    """How a checkpoint is compressed: the encoder's settings and which matrices get which."""

    include: Patterns = Field((), description="patterns of further matrices to encode, such as lm_head.weight")
    exclude: Patterns = Field((), description="patterns of matrices that stay dense")
    copy_files: Patterns = Field(
        (),
        exclude_if=lambda patterns: not patterns,  # so that the settings of bundles without are what they were
        description="patterns of files of the source that the bundle gets a copy of, beside the known companions of a "
        "checkpoint",
    )
    head_bits: Annotated[int | float, BeforeValidator(_head_bits)] = Field(
        8,
        description="bits of a language model's input embedding and output head, 2 to 8 and outside an average, or 16: "
        "dense",
    )
    calibration: str = Field(
        "auto",
        description="what the model is measured on: own (text that it writes itself), random (tokens: channel scales "
        "alone), a text file, a data set of the hub (OWNER/NAME, OWNER/NAME:CONFIG, or its folder), or none; auto: own "
        "for causal language models, else random",
    )
    calibration_tokens: int | None = Field(
        None, ge=4, description="tokens of a calibration on text; by default as many as the effort asks for"
    )
    tune_minutes: float | None = Field(
        None,
        ge=0,
        allow_inf_nan=False,
        description="how long scales and norms are tuned after a calibration on text; 0: not at all",
    )
    tune_steps: int | None = Field(None, ge=0, description="steps of the tuning, in place of minutes")
    equal_fused: bool = Field(
        True, description="with an average of bits, one level count for q, k, v, and one for gate, up, of a block"
    )
    on_no_convergence: str = Field(
        "encode", description="a matrix that has not converged: encode it, keep it dense, or ENCODER[:BITS]"
    )
    layers: Annotated[tuple[LayerRule, ...], AsTuple] = Field(
        (), description="rules of {match: PATTERN, key: value, ...}; of several that fit, later ones win"
    )

    @property
    def effort(self) -> str:
        """The effort of the encoders that have one, which calibration and tuning follow."""
        effort: str = self.options.effort
        return effort

    def base(self) -> EncoderConfig:
        """The encoder's settings alone."""
        return EncoderConfig.model_validate({key: getattr(self, key) for key in EncoderConfig.model_fields})

    def for_matrix(self, name: str) -> EncoderConfig:
        """The settings for the matrix of that module name."""
        config = self.base()
        for rule in self.layers:
            if rule.fits(name):
                config = rule.apply(config)
        return config

    def for_tokens(self, name: str) -> EncoderConfig | None:
        """The settings for the input embedding or the output head of that module name: `head_bits`.

        None where a rule of `layers` gives it bits, levels or an encoder, so that it is a matrix as the others are.
        """
        rules = [rule for rule in self.layers if rule.fits(name)]
        if any(rule.has_own_bits for rule in rules):
            return None
        how = AT_8_BITS if self.head_bits == 8 else BELOW_8_BITS
        config = EncoderConfig.model_validate(changed(self.base().model_dump(), {"bits": self.head_bits, **how}))
        for rule in rules:
            config = rule.apply(config)
        return config

    def fallback(self, config: EncoderConfig) -> EncoderConfig | None:
        """The settings for a matrix that `config` could not decompose; None for `encode` and `keep`."""
        if self.on_no_convergence in ("encode", "keep"):
            return None
        encoder, _, bits = self.on_no_convergence.partition(":")
        changes: dict[str, Any] = {"encoder": encoder}
        if bits:
            changes["bits"] = int(bits) if bits.isascii() and bits.isdecimal() and len(bits) < 3 else bits
        return EncoderConfig.model_validate(changed(config.model_dump(), changes))


def changed(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with `changes` in their place; bits that are given anew take the place of levels, too."""
    return {**values, **({"levels": None} if "bits" in changes else {}), **changes}


@dataclass(frozen=True)
class Setting:
    """A setting: its key, what it may be, and the encoders that read it (all of them: none are named)."""

    key: str
    field: FieldInfo
    encoders: tuple[str, ...] = ()

    @property
    def default(self) -> Any:
        """Its default."""
        return self.field.default

    @property
    def choices(self) -> list[str]:
        """The names that it can be; none where it is a number, a text or a list."""
        registry = next((part for part in self.field.metadata if isinstance(part, OneOf)), None)
        if registry is not None:
            return list(registry.names())
        annotation = self.field.annotation
        return list(get_args(annotation)) if get_origin(annotation) is Literal else []

    @property
    def description(self) -> str:
        """What it means."""
        return encoders_in_words() if self.key == "encoder" else self.field.description or ""


def all_settings(config: type[EncoderConfig] = CompressConfig) -> dict[str, Setting]:
    """Every setting of `config` by its key, in the order in which a manifest has them."""
    found: dict[str, Setting] = {}
    for key, field in config.model_fields.items():
        if key == OPTIONS:
            for own, its in settings_of_all().model_fields.items():
                readers = tuple(name for name, encoder in ENCODERS.items() if own in own_settings(encoder))
                if own in CompressConfig.model_fields:
                    raise TypeError(f"encoder {readers[0]!r} has a setting {own!r}, which all encoders have already")
                found[own] = Setting(own, its, readers)
        else:
            found[key] = Setting(key, field)
    return found
