"""`kquant demo`: the tour of the tool on the embedded models, by the commands themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kquant_cli.cli.compress import compress
from kquant_cli.cli.console import console
from kquant_cli.cli.evaluate import evaluate
from kquant_cli.cli.generate import generate
from kquant_cli.cli.inspect import inspect

PROMPT, NEW_TOKENS = "The lighthouse keeper", 24


def demo(
    bits: Annotated[int, typer.Option(help="Bits of a code, 1 to 8.")] = 4,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Else bundles/demo-BITSbit; the classifier's has -sst2 behind its name."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Compress the embedded models, evaluate them on the embedded texts, write and inspect: a minute.

    Example: kquant demo --bits 3
    """
    from kquant_cli.compress.output import check_output
    from kquant_cli.config import load_config
    from kquant_cli.demo import demo_classifier_path, demo_model_path, demo_sentences_path

    load_config(None, {"bits": bits})
    bundle = output or Path("bundles") / f"demo-{bits}bit"
    overwrite = output is None
    classifier, sentences = _shown(demo_classifier_path()), _shown(demo_sentences_path())
    small = bundle.with_name(f"{bundle.name}-sst2")
    for out, source in ((small, demo_classifier_path()), (bundle, demo_model_path())):
        check_output(out, source)
    _title(f"kquant compress {classifier} --bits {bits} -o {small}")
    compress(classifier, {"bits": bits}, output=small, device=device, overwrite=overwrite)
    _title(f"kquant eval {small} --task sst2 --data {sentences} --against {classifier}")
    evaluate(str(small), task="sst2", data=Path(sentences), against=classifier, device=device)

    model = _shown(demo_model_path())
    _title(f"kquant compress {model} --bits {bits} --effort fast -o {bundle}")  # without tuning, which takes minutes
    compress(model, {"bits": bits, "effort": "fast"}, output=bundle, device=device, overwrite=overwrite)
    for path in (model, str(bundle)):
        _title(f"kquant eval {path} --task demo")
        evaluate(path, task="demo", device=device)
    _title(f'kquant generate {bundle} --prompt "{PROMPT}" --max-new-tokens {NEW_TOKENS}')
    generate(str(bundle), prompt=PROMPT, max_new_tokens=NEW_TOKENS, device=device)
    _title(f"kquant inspect {bundle}")
    inspect(bundle)  # the newest bundle, which `kquant eval` and `kquant inspect` take


def _shown(path: Path) -> str:
    """A path as one would type it."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _title(command: str) -> None:
    console.rule(style="dim")
    console.print(f"$ {command}", style="bold", highlight=False, markup=False, soft_wrap=True)
