"""Blocks of what the commands print, which options they have, and which settings there are."""

from __future__ import annotations

import re
import types
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Union, get_args, get_origin

import typer
from mdtable import escaped, table
from pydantic.fields import FieldInfo

from kquant_cli.cli import app
from kquant_cli.config import Setting, all_settings

RULE = re.compile(r"^─{20,}$", re.MULTILINE)  # between the commands of the demo
SHOWN_LAYERS = 6  # of the table of `kquant inspect`, in the README
PANEL = "Settings"  # of the flags of `kquant compress` that are settings


def output(text: str) -> str:
    """What the demo printed, whole."""
    return f"```text\n{text.rstrip()}\n```"


def excerpt(text: str) -> str:
    """The demo's language model: what compress, eval and inspect printed, shortened where `...` stands."""
    compressed = _section(text, "compress kquant_cli/demo/opt-4m")
    evaluated = _section(text, "eval bundles/demo-4bit ")
    layers = _section(text, "inspect")
    end = next(i for i, line in enumerate(evaluated) if line.startswith("└")) + 1
    first = next(i for i, line in enumerate(layers) if line.strip().startswith("──")) + 1
    return output("\n".join([*compressed, *evaluated[:end], "...", *layers[: first + SHOWN_LAYERS], "..."]))


def _section(text: str, command: str) -> list[str]:
    """The lines from a command of the demo to the next one."""
    parts = (part.strip() for part in RULE.split(text))
    return next(part for part in parts if part.startswith(f"$ kquant {command}")).splitlines()


def options(command: str) -> Callable[[str], str]:
    """The arguments and options of a command, but for those that are settings."""

    def block(_: str) -> str:
        group: Any = typer.main.get_command(app)
        with group.make_context("kquant", [command], resilient_parsing=True) as context:
            found = group.resolve_command(context, [command])[1].params
        rows = [
            [_flag(option), _default(option), escaped(option.help or "")]
            for option in found
            if not (option.rich_help_panel or "").startswith(PANEL)
        ]
        return table(["option", "default", "meaning"], rows, align="l")

    return block


def _flag(option: Any) -> str:
    if option.opts[0].startswith("-"):
        return ", ".join(f"`{name}`" for name in option.opts)
    return f"`{option.opts[0].upper()}`"


def _default(option: Any) -> str:
    if option.required:
        return "required"
    return "" if option.default in (None, "") or option.default is False else f"`{option.default}`"


def settings(_: str) -> str:
    """The settings: key, values or type, default, the encoders that read it and description, from the schema itself."""
    rows = [
        [
            f"`{key}`",
            _values(setting),
            _setting_default(setting.field),
            ", ".join(setting.encoders),
            escaped(setting.description),
        ]
        for key, setting in all_settings().items()
    ]
    return table(["key", "values", "default", "encoder", "meaning"], rows, align="l")


def _values(setting: Setting) -> str:
    """The values in words: choices, or a type with its bounds."""
    if setting.choices:
        return ", ".join(f"`{choice}`" for choice in setting.choices)
    kinds = list(_kinds(setting.field.annotation))
    names = {int: "whole number", float: "number", str: "text", bool: "true or false", tuple: "list"}
    words = [names[get_origin(kind) or kind] for kind in kinds if (get_origin(kind) or kind) in names]
    words = ["number"] if {"whole number", "number"} <= set(words) else words
    return " or ".join(dict.fromkeys(words)) + _bounds(setting.field)


def _kinds(annotation: Any) -> Iterator[Any]:
    """The types of a union, one by one, without what is annotated to them."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from _kinds(get_args(annotation)[0])
    elif origin in (Union, types.UnionType):
        for kind in get_args(annotation):
            yield from _kinds(kind)
    elif annotation is not type(None):
        yield annotation


def _bounds(field: FieldInfo) -> str:
    found = {
        name: getattr(rule, name) for rule in field.metadata for name in ("ge", "gt", "le", "lt") if hasattr(rule, name)
    }
    signs = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    words = [f"{signs[name]} {_power(value)}" for name, value in found.items()]
    return f", {', '.join(words)}" if words else ""


def _power(value: float) -> str:
    return "2^32" if value == 2**32 else f"{value:g}"


def _setting_default(field: FieldInfo) -> str:
    value = field.default
    return "" if value is None else f"`{list(value)}`" if isinstance(value, tuple) else f"`{value}`"
