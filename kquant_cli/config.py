"""Settings: what they are called, what they may be, and the YAML file they come from.

One flat schema. Command-line flags override the YAML file, which overrides the defaults here; everything is validated
once, and a mistake is answered with the key's path, what was expected and the nearest valid spelling.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from kquant_cli.errors import KQuantError
from kquant_cli.suggestions import nearest

EncoderName = Literal["annealed", "greedy", "uniform", "kmeans"]
BasisKind = Literal[
    "identity",
    "dct",
    "hadamard",
    "signed_hadamard",
    "hadamard_dct",
    "signed_hadamard_dct",
    "twice_signed_hadamard_dct",
    "signed_dct_ii",
    "signed_dct",
    "butterfly",
    "householder",
    "givens",
    "qr",
]


COMBINATION = "combination"  # the type of an error of values that are possible one by one
LEVEL_LIMITS: dict[str, tuple[str, Callable[[int], bool], str]] = {  # setting: value, which level counts it can have
    "init": ("peaks", lambda k: k & (k - 1) == 0, "a power of two, since peaks are sums of signed steps"),
    "codebook": ("product", lambda k: k % 2 == 0, "an even number, since its points are pairs of equal u"),
}


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, protected_namespaces=())


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


def _bits(value: object) -> object:
    """A number from 1 to 8; whole ones as integers."""
    if type(value) not in (int, float) or not 1 <= value <= 8:  # type: ignore[operator]
        raise PydanticCustomError("bits", "a number from 1 to 8, whole or, as an average, a fraction such as 3.25")
    return int(value) if value == int(value) else value  # type: ignore[call-overload]


Bits = Annotated[int | float, BeforeValidator(_bits)]
Tolerance = Annotated[float, BeforeValidator(_number), Field(ge=0, lt=1)]
Patterns = Annotated[tuple[str, ...], BeforeValidator(_tuple)]


class EncoderConfig(_Strict):
    """How one matrix is encoded."""

    encoder: EncoderName = Field(
        "annealed", description="annealed (ours), greedy (the paper), uniform or kmeans (its baselines)"
    )
    bits: Bits = Field(4, description="bits of a code; the codebook has 2^bits centroids; a fraction is an average")
    levels: int | None = Field(None, ge=2, le=256, description="centroids of the codebook, in place of 2^bits")
    seed: int = Field(0, ge=0, lt=2**32, description="seed of the bases, of k-means++ and of random tokens")
    effort: Literal["fast", "balanced", "best"] = Field(
        "balanced", description="sweeps of the annealing: 20, 60 or 400"
    )
    codebook: Literal["auto", "ring", "product"] = Field(
        "auto", description="where the annealed encoder's centroids lie; auto: where the search found less error"
    )
    side: Literal["input", "output"] = Field("input", description="anneal rows (a row scale) or columns")
    basis: BasisKind = Field("dct", description="kind of the orthogonal matrices Q1 and Q2")
    basis_count: int | None = Field(None, ge=1, description="factors of a butterfly, householder or givens basis")
    form: Literal["matrix", "vector"] = Field("matrix", description="decompose the matrix at once, or row by row")
    rule: Literal["greedy", "alternating"] = Field("greedy", description="which of u and v takes the next sign step")
    max_iter: int = Field(200, ge=1, description="most iterations of the decomposition")
    tol: Tolerance = Field(1e-6, description="relative residual at which the decomposition has converged")
    init: Literal["grid", "kmeans++", "peaks"] = Field("grid", description="start of k-means")
    restarts: int = Field(5, ge=1, description="starts of k-means, compared on a sample; k-means++ after the first")
    kmeans_iter: int = Field(300, ge=0, description="most iterations of k-means")
    kmeans_tol: Tolerance = Field(5e-6, description="relative movement of the centroids at which k-means stops")
    group_size: int = Field(128, ge=0, description="columns that share a scale in `uniform`; 0: one range a tensor")

    @model_validator(mode="after")
    def _levels_fit(self) -> EncoderConfig:
        if not self.is_average and (reason := self.unfit(self.level_count)):
            raise PydanticCustomError(COMBINATION, reason)
        return self

    def unfit(self, levels: int) -> str | None:
        """Why the encoder cannot have so many centroids with these settings, as a sentence; None where it can."""
        for key, (value, fits, needed) in LEVEL_LIMITS.items():
            if key in READ_BY[self.encoder] and getattr(self, key) == value and not fits(levels):
                return f"`{key}: {value}` cannot have {levels} levels, expected {needed}"
        return None

    @property
    def level_count(self) -> int:
        """Centroids of the codebook; ValueError where `bits` is a fraction, which no single matrix can have."""
        if self.levels is None and self.bits != int(self.bits):
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


READ_BY: dict[str, set[str]] = {  # settings beside encoder, bits, levels and seed
    "annealed": {"effort", "codebook", "side"},
    "greedy": {
        *("basis", "basis_count", "form", "rule", "max_iter", "tol"),
        *("init", "restarts", "kmeans_iter", "kmeans_tol"),
    },
    "uniform": {"group_size"},
    "kmeans": {"init", "restarts", "kmeans_iter", "kmeans_tol"},
}


class LayerRule(BaseModel):
    """Other settings for the matrices whose name fits `match`: any key of EncoderConfig beside it."""

    model_config = ConfigDict(frozen=True, extra="allow")
    match: str = Field(description="pattern on the matrix's name, such as *.fc2")

    def fits(self, name: str) -> bool:
        """Whether `match`, with or without its ending .weight, fits the module name."""
        return fnmatchcase(name, self.match.removesuffix(".weight"))

    def apply(self, base: EncoderConfig) -> EncoderConfig:
        """The settings of `base` with this rule's in their place; raises pydantic's ValidationError."""
        return EncoderConfig.model_validate(_changed(base.model_dump(), self.model_extra or {}))


class CompressConfig(EncoderConfig):
    """How a checkpoint is compressed: the encoder's settings and which matrices get which."""

    include: Patterns = Field((), description="patterns of further matrices to encode, such as lm_head.weight")
    exclude: Patterns = Field((), description="patterns of matrices that stay dense")
    stats: str = Field(
        "random", description="inputs that channel scales are measured on: random (tokens), a text file, or none"
    )
    sensitivity: str = Field(
        "data-free", description="tokens that an average of bits is spread by: data-free (random) or a text file"
    )
    on_no_convergence: str = Field(
        "encode", description="a matrix that has not converged: encode it, keep it dense, or ENCODER[:BITS]"
    )
    layers: Annotated[tuple[LayerRule, ...], BeforeValidator(_tuple)] = Field(
        (), description="rules of {match: PATTERN, key: value, ...}; of several that fit, later ones win"
    )

    def base(self) -> EncoderConfig:
        """The encoder's settings alone."""
        return EncoderConfig.model_validate({k: getattr(self, k) for k in EncoderConfig.model_fields})

    def for_matrix(self, name: str) -> EncoderConfig:
        """The settings for the matrix of that module name."""
        config = self.base()
        for rule in self.layers:
            if rule.fits(name):
                config = rule.apply(config)
        return config

    def fallback(self, config: EncoderConfig) -> EncoderConfig | None:
        """The settings for a matrix that `config` could not decompose; None for `encode` and `keep`."""
        if self.on_no_convergence in ("encode", "keep"):
            return None
        encoder, _, bits = self.on_no_convergence.partition(":")
        changes: dict[str, Any] = {"encoder": encoder}
        if bits:
            changes["bits"] = int(bits) if bits.isascii() and bits.isdecimal() else bits
        return EncoderConfig.model_validate(_changed(config.model_dump(), changes))


def load_config(path: Path | None = None, overrides: Mapping[str, Any] | None = None) -> CompressConfig:
    """Settings from a YAML file (or none) with `overrides` (command-line flags by key) on top.

    Raises
    ------
    KQuantError
        The file is missing or not YAML, or a key is unknown, of a wrong type, or has an impossible value.
    """
    values: dict[str, Any] = _read_yaml(path) if path else {}
    source, flags = str(path) if path else "settings", overrides or {}
    _check_size(values, f"{source}: ")
    _validated(values, source)
    _check_size(flags, "command line: ")
    config = _validated(_changed(values, flags), "command line")
    _check_read(config, flags)
    return config


def _changed(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with `changes` in their place; bits that are given anew take the place of levels, too."""
    return {**values, **({"levels": None} if "bits" in changes else {}), **changes}


def _check_size(values: Mapping[str, Any], where: str) -> None:
    """Refuse bits and levels given side by side."""
    if values.get("bits") is not None and values.get("levels") is not None:
        raise KQuantError(
            f"{where}`bits` is {values['bits']!r} and `levels` is {values['levels']!r}, expected one of the two: "
            f"levels are in place of 2^bits"
        )


def _check_read(config: CompressConfig, flags: Mapping[str, Any]) -> None:
    """Refuse a flag that nothing reads: no encoder of these settings, or bits that are no average."""
    settings = [config.base(), *(rule.apply(config.base()) for rule in config.layers)]
    settings += [fallback for c in settings if (fallback := config.fallback(c))]
    encoders = {c.encoder for c in settings}
    for flag in flags:
        readers = [name for name, read in READ_BY.items() if flag in read]
        if readers and not encoders & set(readers):
            raise KQuantError(
                f"command line: `{flag}` means nothing to the encoder {' or '.join(sorted(encoders))}; leave it out, "
                f"or choose --encoder {' or '.join(readers)}"
            )
    if "sensitivity" in flags and not any(c.is_average for c in settings):
        raise KQuantError(
            "command line: `sensitivity` means nothing where every matrix has the same bits; leave it out, or give "
            "--bits an average such as 3.25"
        )


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise KQuantError(f"{path}: cannot be read ({error.strerror}); give --config an existing YAML file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        place = getattr(error, "problem_mark", None)
        line = f" at line {place.line + 1}" if place else ""
        raise KQuantError(f"{path}: not valid YAML{line}; expected lines of `key: value`") from error
    if values is not None and not isinstance(values, dict):
        raise KQuantError(f"{path}: expected lines of `key: value`, found {type(values).__name__}")
    return values or {}


def _validated(values: Mapping[str, Any], source: str) -> CompressConfig:
    try:
        config = CompressConfig.model_validate(dict(values))
    except ValidationError as error:
        raise KQuantError(f"{source}: {_explain(error)}") from None
    for i, rule in enumerate(config.layers):
        given = rule.model_extra or {}
        _check_size(given, f"{source}: layers.{i}: ")
        try:
            applied = rule.apply(config.base())
        except ValidationError as error:
            raise KQuantError(f"{source}: {_explain(error, f'layers.{i}.')}") from None
        if applied.is_average and "bits" in given:
            raise KQuantError(
                f"{source}: `layers.{i}.bits` is {applied.bits}, expected whole bits: an average is over all matrices; "
                f"give those of a rule whole bits, or levels"
            )
    _check_fallback(config, source)
    return config


def _check_fallback(config: CompressConfig, source: str) -> None:
    """Refuse an `on_no_convergence` that is nothing, or that an average of bits cannot be kept with."""
    answer = config.on_no_convergence
    try:
        config.fallback(config.base())
    except ValidationError as error:
        if error.errors()[0]["type"] == COMBINATION:
            raise KQuantError(f"{source}: `on_no_convergence` is {answer!r}: {_explain(error)}") from None
        encoders = get_args(EncoderName)
        raise KQuantError(
            f"{source}: `on_no_convergence` is {answer!r}, expected `encode`, `keep` or `ENCODER[:BITS]` with ENCODER "
            f"one of {', '.join(encoders)} and BITS from 1 to 8, whole"
            + nearest(answer.partition(":")[0], ["encode", "keep", *encoders])
        ) from None
    if config.is_average and answer != "encode":
        raise KQuantError(
            f"{source}: `on_no_convergence` is {answer!r}, expected `encode` where `bits` is an average "
            f"({config.bits}): whatever else takes other bits than were allotted"
        )


def _explain(error: ValidationError, prefix: str = "") -> str:
    """The first mistake as one sentence."""
    first = error.errors()[0]
    path = prefix + ".".join(str(part) for part in first["loc"])
    if first["type"] == COMBINATION:
        return f"{path.removesuffix('.')}: {first['msg']}" if path else first["msg"]
    key, value = str(first["loc"][-1]) if first["loc"] else "", first["input"]
    if first["type"] == "extra_forbidden":
        known = EncoderConfig.model_fields if prefix else CompressConfig.model_fields
        return f"`{path}` is not a setting{nearest(key, known) or '; known are ' + ', '.join(known)}"
    if first["type"] == "literal_error":
        return f"`{path}` is {value!r}, expected {first['ctx']['expected']}{nearest(str(value), _literals(key))}"
    if first["type"] == "invalid_key":
        return f"`{path}` is not a setting; known are {', '.join(CompressConfig.model_fields)}"
    if first["type"] == "missing":
        return f"`{path}` is missing"
    expected = first["msg"].removeprefix("Input should be ")
    for pydantics, ours in (("a valid tuple", "a list"), ("a valid integer", "an integer"), ("a valid ", "a ")):
        expected = expected.replace(pydantics, ours)
    expected = expected.removesuffix(" or instance of LayerRule")
    return f"`{path}` is {value!r}, expected {expected}"


def _literals(key: str) -> tuple[str, ...]:
    field = CompressConfig.model_fields.get(key)
    return tuple(str(a) for a in get_args(field.annotation)) if field else ()
