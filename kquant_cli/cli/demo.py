"""`kquant demo`: the tour of the tool on the embedded model, by the commands themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kquant_cli.cli.compress import compress
from kquant_cli.cli.console import console
from kquant_cli.cli.evaluate import evaluate
from kquant_cli.cli.inspect import inspect


def demo(
    bits: Annotated[int, typer.Option(help="Bits of a code, 1 to 8.")] = 4,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Else bundles/demo-BITSbit.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Compress the embedded model, evaluate both on the embedded text, inspect the bundle: a minute.

    Example: kquant demo --bits 3
    """
    from kquant_cli.demo import demo_model_path

    bundle = output or Path("bundles") / f"demo-{bits}bit"
    folder = demo_model_path()
    model = str(folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder)
    _title(f"kquant compress {model} --bits {bits} -o {bundle}")
    compress(model, output=bundle, bits=bits, device=device, overwrite=output is None)
    for path in (model, str(bundle)):
        _title(f"kquant eval {path} --task demo")
        evaluate(path, task="demo", device=device)
    _title(f"kquant inspect {bundle}")
    inspect(bundle)


def _title(command: str) -> None:
    console.rule(style="dim")
    console.print(f"$ {command}", style="bold", highlight=False, markup=False, soft_wrap=True)
