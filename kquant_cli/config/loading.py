"""Settings from a YAML file with the command line's flags on top, checked as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from kquant_cli.config.mistakes import explain
from kquant_cli.config.schema import BELOW_8_BITS, COMBINATION, CompressConfig, EncoderConfig, all_settings, changed
from kquant_cli.config.yaml_file import read_yaml
from kquant_cli.encoders import ENCODERS, takes_metric
from kquant_cli.errors import LONGEST, KQuantError, shortened
from kquant_cli.suggestions import nearest


def load_config(path: Path | None = None, overrides: Mapping[str, Any] | None = None) -> CompressConfig:
    """Settings from a YAML file (or none) with `overrides` (command-line flags by key) on top.

    Raises
    ------
    KQuantError
        The file is missing or not YAML, or a key is unknown, of a wrong type, or has an impossible value.
    """
    values: dict[str, Any] = read_yaml(path) if path else {}
    source, flags = str(path) if path else "settings", overrides or {}
    _check_size(values, f"{source}: ")
    _validated(values, source)
    _check_size(flags, "command line: ")
    config = _validated(changed(values, flags), "command line")
    _check_read(config, flags)
    return config


def _check_size(values: Mapping[str, Any], where: str) -> None:
    """Refuse bits and levels given side by side."""
    if values.get("bits") is not None and values.get("levels") is not None:
        raise KQuantError(
            f"{where}`bits` is {shortened(values['bits'])} and `levels` is {shortened(values['levels'])}, expected one "
            f"of the two: levels are in place of 2^bits"
        )


def _check_read(config: CompressConfig, flags: Mapping[str, Any]) -> None:
    """Refuse a flag that nothing reads: no encoder of these settings, or bits that are no average."""
    settings = [config.base(), *(rule.apply(config.base()) for rule in config.layers)]
    settings += [fallback for c in settings if (fallback := config.fallback(c))]
    encoders, known = {c.encoder for c in settings}, all_settings()
    if config.head_bits < 8:
        encoders.add(BELOW_8_BITS["encoder"])
    for flag in flags:
        readers = known[flag].encoders
        if readers and not encoders & set(readers):
            raise KQuantError(
                f"command line: `{flag}` is not used by the encoder {' or '.join(sorted(encoders))}; leave it out, "
                f"or choose --encoder {' or '.join(readers)}"
            )
    if "equal_fused" in flags and not any(c.is_average for c in settings):
        raise KQuantError(
            "command line: `equal_fused` is not used where every matrix has the same bits; leave it out, or give "
            "--bits an average such as 3.25"
        )
    for flag in ("calibration_tokens", "tune_minutes", "tune_steps"):
        if flag not in flags:
            continue
        if config.calibration in ("random", "none"):
            raise KQuantError(
                f"command line: `{flag}` is not used where `calibration` is {config.calibration}; leave it out, or "
                f"give --calibration own or a text file"
            )
        if not any(takes_metric(c) for c in settings):
            raise KQuantError(
                f"command line: `{flag}` is not used by the encoder {' or '.join(sorted(encoders))}, so set; leave it "
                f"out, or choose --encoder annealed with a side other than input"
            )
    if "tune_steps" in flags and "tune_minutes" in flags:
        raise KQuantError("command line: `tune_steps` and `tune_minutes` are both given; expected one of the two")


def _validated(values: Mapping[str, Any], source: str) -> CompressConfig:
    try:
        config = CompressConfig.model_validate(dict(values))
    except ValidationError as error:
        raise KQuantError(f"{source}: {explain(error)}") from None
    _check_fallback(config, config.base(), source)
    for i, rule in enumerate(config.layers):
        given = rule.model_extra or {}
        _check_size(given, f"{source}: layers.{i}: ")
        try:
            applied = rule.apply(config.base())
        except ValidationError as error:
            raise KQuantError(f"{source}: {explain(error, f'layers.{i}.')}") from None
        if applied.is_average and "bits" in given:
            raise KQuantError(
                f"{source}: `layers.{i}.bits` is {applied.bits}, expected whole bits: an average is over all matrices; "
                f"give those of a rule whole bits, or levels"
            )
        _check_fallback(config, applied, f"{source}: layers.{i}")
    return config


def settings_of_matrix(config: CompressConfig, name: str) -> EncoderConfig:
    """The settings for the matrix of that module name; KQuantError where those of several rules do not go together."""
    try:
        settings = config.for_matrix(name)
    except ValidationError as error:
        raise KQuantError(f"layers: the rules that fit {name} do not go together: {explain(error)}") from None
    _check_fallback(config, settings, f"layers: {name}")
    return settings


def settings_of_tokens(config: CompressConfig, name: str) -> EncoderConfig | None:
    """The settings of `head_bits` for the matrix of that module name, None where a rule makes it one as the others are.

    KQuantError where those of several rules do not go together.
    """
    try:
        return config.for_tokens(name)
    except ValidationError as error:
        raise KQuantError(f"layers: the rules that fit {name} do not go together: {explain(error)}") from None


def _check_fallback(config: CompressConfig, settings: EncoderConfig, source: str) -> None:
    """Refuse an `on_no_convergence` that is nothing, that cannot be, or that an average of bits cannot be kept with."""
    answer = config.on_no_convergence
    try:
        config.fallback(settings)
    except ValidationError as error:
        if error.errors()[0]["type"] == COMBINATION:
            raise KQuantError(f"{source}: `on_no_convergence` is {shortened(answer)}: {explain(error)}") from None
        raise KQuantError(
            f"{source}: `on_no_convergence` is {shortened(answer)}, expected `encode`, `keep` or `ENCODER[:BITS]` with "
            f"ENCODER one of {', '.join(ENCODERS)} and BITS from 1 to 8, whole"
            + nearest(answer.partition(":")[0][:LONGEST], ["encode", "keep", *ENCODERS])
        ) from None
    if config.is_average and answer != "encode":
        raise KQuantError(
            f"{source}: `on_no_convergence` is {shortened(answer)}, expected `encode` where `bits` is an average "
            f"({config.bits}): anything else would use other bits than were allotted"
        )
