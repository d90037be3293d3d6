"""The command line: one file a command, options and output only. Heavy imports live inside the commands."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from io import TextIOWrapper
from pathlib import Path
from types import MappingProxyType
from typing import Annotated

import typer

from kquant_cli import __version__
from kquant_cli.cli.bench import bench
from kquant_cli.cli.compress import compress
from kquant_cli.cli.console import print_error, show_log
from kquant_cli.cli.decompress import decompress
from kquant_cli.cli.demo import demo
from kquant_cli.cli.evaluate import evaluate
from kquant_cli.cli.generate import generate
from kquant_cli.cli.inspect import inspect
from kquant_cli.cli.setting_options import SettingsGroup
from kquant_cli.cli.verify import verify
from kquant_cli.errors import KQuantError


class Commands(SettingsGroup):
    """The commands; of `compress` only the name, until it is called."""

    late = MappingProxyType({"compress": compress})


app = typer.Typer(
    name="kquant",
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Example: kquant compress facebook/opt-1.3b --bits 4 && kquant eval --task wikitext2 && kquant inspect",
)
app.command("compress", help=compress.__doc__)(lambda: None)  # Commands has the real one
app.command("decompress")(decompress)
app.command("inspect")(inspect)
app.command("verify")(verify)
app.command("eval")(evaluate)
app.command("generate")(generate)
app.command("bench")(bench)
app.command("demo")(demo)


def _version(value: bool) -> None:
    if value:
        print(f"kquant {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Compress Hugging Face language models with Kashin quantisation (arXiv 2404.09737)."""


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line; a KQuantError becomes one sentence on standard error and exit code 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a terminal that cannot show the bars shows question marks
            stream.reconfigure(errors="replace")
    show_log()
    try:
        try:
            app(args=args)
        finally:
            sys.stdout.flush()  # what cannot be written is found out here, and not when Python ends
    except KQuantError as error:
        print_error(error)
        sys.exit(2)
    except OSError as error:
        if error.filename is not None or error.errno not in (errno.ENOSPC, errno.EPIPE):
            raise
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 (to the end of the process)
        if error.errno == errno.EPIPE:  # who reads has seen enough
            sys.exit(1)
        print_error("no space left where the output goes; send it elsewhere")
        sys.exit(2)
