"""`kquant eval`: what compression cost, as numbers that can be compared with everybody else's."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kquant_cli.cli.bundle_argument import bundle_or_newest
from kquant_cli.cli.console import console, log, write_results
from kquant_cli.cli.results_file import require_results_file

if TYPE_CHECKING:
    from kquant_cli.evaluation import Result
    from kquant_cli.hf.loading import LoadedModel

EXAMPLES = """Examples:

kquant eval --task wikitext2   (the newest bundle under bundles/)

kquant eval facebook/opt-125m --task wikitext2 --data wiki.test.raw --json dense.json

kquant eval bundles/opt-125m-annealed-4bit --task lambada,ptb --against facebook/opt-125m

kquant eval bundles/opt-125m-annealed-4bit --task text --data book.txt --protocol stride --stride 256

kquant eval bundles/opt-125m-annealed-4bit --task wikitext2,lm_eval:hellaswag,piqa   (wikitext2, and two of the harness)

kquant eval my-classifiers --task glue --data glue_data   (sub-folders cola/, sst2/, ... in both)
"""
LINE_SECONDS = 10.0  # between two lines of progress where there is no terminal


def evaluate(
    model: Annotated[
        str | None,
        typer.Argument(help="A bundle, a model folder or a model id on the hub; without it, the newest of bundles/."),
    ] = None,
    task: Annotated[
        str,
        typer.Option(
            help="wikitext2, ptb, c4, lambada (lambada_text and lambada_word), text (your --data), demo; glue, or some "
            "of it: cola, sst2, mrpc, qqp, stsb, mnli, qnli, rte, wnli; several with commas. Last, "
            "lm_eval:NAME,NAME,...: tasks of lm-evaluation-harness (pip install lm-eval); every name after lm_eval: is "
            "the harness's."
        ),
    ] = "wikitext2",
    data: Annotated[
        Path | None,
        typer.Option(
            help="The data: a file, or a folder laid out as on the hub or as the official download; for lm_eval a "
            "folder with task files (YAML) of yours."
        ),
    ] = None,
    data_format: Annotated[
        str | None,
        typer.Option(help="text: the file verbatim; wikitext: its rows, joined by blank lines. Default: the task's."),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(help="Also measure this model, the original: differences with errors, KL divergence, agreement."),
    ] = None,
    protocol: Annotated[
        str | None,
        typer.Option(
            help="gptq: windows without overlap, tail dropped; stride: overlapping, new tokens counted; paper: "
            "overlapping, counted as the paper's code counts. Default: gptq, and paper for lambada_text."
        ),
    ] = None,
    seqlen: Annotated[
        int | None,
        typer.Option(help="Tokens a window (default: the model's maximum, for gptq at most 2048), or a GLUE example."),
    ] = None,
    stride: Annotated[
        int | None, typer.Option(help="Tokens from window to window (stride and paper). Default: 512.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first so many windows, or examples.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    device_map: Annotated[
        str | None,
        typer.Option(
            help="Spread the model over all GPUs, the CPU and the disk, in place of --device: auto, balanced, "
            "sequential (as accelerate does it)."
        ),
    ] = None,
    dtype: Annotated[
        str,
        typer.Option(help="auto (float32 on the CPU, the checkpoint's on a GPU), float32, float16, bfloat16, float64."),
    ] = "auto",
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a model on the hub.")] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", dir_okay=False, help="Also write the results to this file.")
    ] = None,
) -> None:
    """Measure a dense model or a bundle; a bundle keeps the results beside its manifest."""
    from kquant_cli.evaluation import EvalOptions, place_tasks, select_tasks, split_names
    from kquant_cli.hf.quiet import quiet
    from kquant_cli.report import evaluation_table
    from kquant_cli.runtime import load_model

    require_results_file(json_file)
    options = EvalOptions(data, data_format, protocol, seqlen, stride, limit)
    tasks = select_tasks(task, options)
    places = place_tasks(bundle_or_newest(model, "evaluating"), tasks, split_names(task), revision)
    originals = {} if against is None else place_tasks(against, {name: tasks[name] for name in places}, list(places))
    if left_out := [name for name in tasks if name not in places]:
        _say(f"{model} has no checkpoint for {', '.join(left_out)}: left out")
    read = {name: tasks[name].read(options) for name in places}

    @lru_cache(maxsize=1 if against is None else 2)
    def load(path: str, auto_class: str, revision: str | None) -> "LoadedModel":
        loaded = load_model(
            path, auto_class=auto_class, device=device, dtype=dtype, revision=revision, device_map=device_map
        )
        if loaded.decoded:
            _say(f"{path} is decoded before it runs: {loaded.decoded}")
        return loaded

    results: list[Result] = []
    for name, place in places.items():
        chosen = tasks[name]
        with quiet():
            loaded = load(place, chosen.auto_class, revision)
            original = load(originals[name], chosen.auto_class, None) if against is not None else None
            with _progress(name, chosen.unit) as progress:
                shown = replace(options, progress=progress)
                results.append(chosen.run(loaded, read[name], shown, against=original))
        _keep(results[-1])
    console.print(evaluation_table([result.to_dict() for result in results]))
    for result in results:
        console.print(result.sentence(), highlight=False, soft_wrap=True, markup=False)
    if json_file is not None:
        write_results(json_file, {"results": [result.to_dict() for result in results]})


def _keep(result: "Result") -> None:
    """Keep a bundle's result beside its manifest, and say so where it had to go elsewhere or nowhere."""
    from kquant_cli.bundle import keep_result
    from kquant_cli.bundle.format import RESULTS
    from kquant_cli.errors import KQuantError

    if result.model_kind != "bundle" or not Path(result.model).is_dir():  # one on the hub has no place for them
        return
    try:
        file = keep_result(Path(result.model), result.to_dict())
    except KQuantError as error:
        _say(f"{result.task}: the result is not kept: {error}")
        return
    if file.parent != Path(result.model) / RESULTS:
        _say(f"{result.model} cannot be written, so the result of {result.task} is kept in {file}")


@contextmanager
def _progress(name: str, unit: str) -> Iterator[Any]:
    """A bar with the time left on a terminal; elsewhere a plain line every ten seconds."""
    if not log.is_terminal:
        yield _PlainProgress(name, unit)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit, markup=False),
    )
    with Progress(*columns, TimeRemainingColumn(), console=log, transient=True) as bar:
        shown = bar.add_task(name)
        yield lambda done, total: bar.update(shown, completed=done, total=total)


class _PlainProgress:
    """Progress for a log file: what is done, of how much, and the seconds left at the pace so far."""

    def __init__(self, name: str, unit: str) -> None:
        self.name, self.unit = name, unit
        self.started = self.printed = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if done and now - self.printed >= LINE_SECONDS:
            self.printed = now
            left = (now - self.started) / done * (total - done)
            _say(f"{self.name}: {done} of {total} {self.unit}, {left:.0f} s left")


def _say(line: str) -> None:
    log.print(line, highlight=False, markup=False, soft_wrap=True)


evaluate.__doc__ = f"{evaluate.__doc__}\n\n{EXAMPLES}"
