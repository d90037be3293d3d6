"""An option on the command line for every setting, with the help that the schema has.

The schema knows the encoders and bases, which takes seconds to import: so the command of a `SettingsGroup` gets its
options when it is called, and `kquant --help` is there at once.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, get_args, get_origin

import typer
from typer.core import TyperGroup

if TYPE_CHECKING:
    from kquant_cli.config import Setting

FLAGS = "flags"
PANEL = "Settings (over those of --config, over the defaults)"
LEFT_OUT = ("layers",)  # settings that are no flags
NAMES = MappingProxyType({"copy_files": ("--copy-files", "--copy")})  # those with a short name, too


class SettingsGroup(TyperGroup):
    """A group whose commands in `late` are made anew, with an option for every setting, when they are called."""

    late: ClassVar[Mapping[str, Callable[..., None]]] = {}

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Name, command and arguments that are left."""
        name, command, rest = super().resolve_command(ctx, args)
        if name is not None and name in self.late:
            app = typer.Typer(add_completion=False, rich_markup_mode="rich")
            app.command(name, epilog=command.epilog if command else None)(with_setting_options(self.late[name]))
            command = typer.main.get_command(app)
            command.context_settings = {"help_option_names": ctx.help_option_names}
        return name, command, rest


def with_setting_options(command: Callable[..., None]) -> Callable[..., None]:
    """`command`, which takes a dict `flags` of settings, with one option a setting in its place."""
    from kquant_cli.config import all_settings

    settings = {key: setting for key, setting in all_settings().items() if key not in LEFT_OUT}

    def run(**values: Any) -> None:
        flags = {key: _typed(settings[key], values.pop(key)) for key in settings}
        command(**values, **{FLAGS: {key: value for key, value in flags.items() if value is not None}})

    own = inspect.signature(command, eval_str=True).parameters
    parameters = [parameter for name, parameter in own.items() if name != FLAGS]
    parameters += [_parameter(setting) for setting in settings.values()]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    run.__doc__, run.__name__ = command.__doc__, command.__name__
    return run


def _parameter(setting: Setting) -> inspect.Parameter:
    option = typer.Option(*NAMES.get(setting.key, ()), help=_help(setting), rich_help_panel=PANEL)
    return inspect.Parameter(
        setting.key,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[_flag_type(setting) | None, option],
    )


def _help(setting: Setting) -> str:
    """The description as a sentence, with the choices and the encoders that read the setting."""
    text = setting.description[:1].upper() + setting.description[1:]
    if setting.choices and setting.key != "encoder":
        text += f" ({', '.join(setting.choices)})"
    if _flag_type(setting) == list[str]:
        text += "; repeatable"
    return f"{text}. For {' and '.join(setting.encoders)}." if setting.encoders else f"{text}."


def _flag_type(setting: Setting) -> Any:
    """The type that the command line reads: text, a number, or a list of texts."""
    annotation = setting.field.annotation
    kinds = {get_origin(part) or part for part in (get_args(annotation) or (annotation,))}
    if annotation == tuple[str, ...] or get_origin(annotation) is tuple:
        return list[str]
    if bool in kinds:
        return bool
    return float if float in kinds else int if int in kinds else str


def _typed(setting: Setting, value: Any) -> Any:
    """A whole number as one, where the setting takes those, too: as it was typed."""
    takes_whole = int in get_args(setting.field.annotation)
    return int(value) if takes_whole and isinstance(value, float) and value.is_integer() else value
