"""`kquant eval`: what compression cost, as numbers that can be compared with everybody else's."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kquant_cli.cli.console import console, log, write_results

if TYPE_CHECKING:
    from kquant_cli.evaluation import EvalOptions, PerplexityResult, Task
    from kquant_cli.runtime import LoadedModel

EXAMPLES = """Examples:

kquant eval --task wikitext2   (the newest bundle under bundles/)

kquant eval facebook/opt-125m --task wikitext2 --data wiki.test.raw --json dense.json

kquant eval bundles/opt-125m-greedy-4bit --task text --data book.txt --protocol stride --stride 256
"""
LINE_SECONDS = 10.0  # between two lines of progress where there is no terminal


def evaluate(
    model: Annotated[
        str | None,
        typer.Argument(help="A bundle, a model folder or a model id on the hub; without it, the newest of bundles/."),
    ] = None,
    task: Annotated[
        str, typer.Option(help="wikitext2, text (your --data) or demo; several with commas.")
    ] = "wikitext2",
    data: Annotated[
        Path | None, typer.Option(help="The text: a file, or for wikitext2 also a folder laid out as on the hub.")
    ] = None,
    data_format: Annotated[
        str | None,
        typer.Option(help="text: the file verbatim; wikitext: its rows, joined by blank lines. Default: the task's."),
    ] = None,
    protocol: Annotated[
        str, typer.Option(help="gptq: windows without overlap, tail dropped; stride: overlapping, new tokens counted.")
    ] = "gptq",
    seqlen: Annotated[
        int | None, typer.Option(help="Tokens a window. Default: the model's maximum, for gptq at most 2048.")
    ] = None,
    stride: Annotated[
        int | None, typer.Option(help="Tokens from window to window (stride only). Default: 512.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first so many windows.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    dtype: Annotated[
        str,
        typer.Option(help="auto (float32 on the CPU, the checkpoint's on a GPU), float32, float16, bfloat16, float64."),
    ] = "auto",
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a model on the hub.")] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", dir_okay=False, help="Also write the results to this file.")
    ] = None,
) -> None:
    """Measure the perplexity of a dense model or a bundle."""
    from transformers.utils import logging as transformers_logging

    from kquant_cli.evaluation import EvalOptions, select_tasks
    from kquant_cli.runtime import load_model

    options = EvalOptions(data, data_format, protocol, seqlen, stride, limit)
    tasks = select_tasks(task, options)
    path = model if model is not None else _newest_bundle()
    texts = {name: chosen.read(options) for name, chosen in tasks.items()}
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()  # what matters of its warnings is an error here
    models: dict[str, LoadedModel] = {}
    results = []
    for name, chosen in tasks.items():
        if chosen.auto_class not in models:
            models[chosen.auto_class] = load_model(
                path, auto_class=chosen.auto_class, device=device, dtype=dtype, revision=revision
            )
        results.append(_run(name, chosen, models[chosen.auto_class], texts[name], options))
    _print(results)
    if json_file is not None:
        write_results(json_file, {"results": [result.to_dict() for result in results]})


def _newest_bundle() -> str:
    from kquant_cli.bundle import newest_bundle

    path = newest_bundle(Path("bundles"))
    log.print(f"Evaluating {path}, the newest bundle.", highlight=False, markup=False, soft_wrap=True)
    return str(path)


def _run(name: str, task: "Task", loaded: "LoadedModel", text: Any, options: "EvalOptions") -> "PerplexityResult":
    from dataclasses import replace

    with _progress(name) as progress:
        return task.run(loaded, text, replace(options, progress=progress))


@contextmanager
def _progress(name: str) -> Iterator[Any]:
    """A bar with the time left on a terminal; elsewhere a plain line every ten seconds."""
    if not log.is_terminal:
        yield _PlainProgress(name)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("windows"))
    with Progress(*columns, TimeRemainingColumn(), console=log, transient=True) as bar:
        shown = bar.add_task(name)
        yield lambda done, total: bar.update(shown, completed=done, total=total)


class _PlainProgress:
    """Progress for a log file: what is done, of how much, and the seconds left at the pace so far."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.started = self.printed = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if done and now - self.printed >= LINE_SECONDS:
            self.printed = now
            left = (now - self.started) / done * (total - done)
            log.print(f"{self.name}: {done} of {total} windows, {left:.0f} s left", highlight=False)


def _print(results: "list[PerplexityResult]") -> None:
    from rich.table import Column, Table
    from rich.text import Text

    numbers = (Column(name, justify="right", no_wrap=True) for name in ("perplexity", "tokens", "windows", "seconds"))
    table = Table("task", Column("model", overflow="fold"), *numbers)
    for result in results:
        number = f"{result.perplexity:.4f}" if result.perplexity < 1e5 else f"{result.perplexity:.4e}"
        counts = (f"{result.tokens:,}", f"{result.windows:,}", f"{result.seconds:.1f}")
        table.add_row(result.task, Text(f"{Path(result.model).name} ({result.model_kind})"), number, *counts)
    console.print(table)
    for result in results:
        console.print(result.sentence(), highlight=False, soft_wrap=True, markup=False)


evaluate.__doc__ = f"{evaluate.__doc__}\n\n{EXAMPLES}"
