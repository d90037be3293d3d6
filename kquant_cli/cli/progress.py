"""Progress of compress: a live display on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from kquant_cli.cli.stages import PlainStage
from kquant_cli.compress.pipeline import Progress as Done
from kquant_cli.compress.plan import Plan
from kquant_cli.compress.preparation import Stage


@contextmanager
def show_progress(
    plan: Plan, console: Console
) -> Iterator[tuple[Callable[[Done], None], Stage, Callable[[str], None]]]:
    """Yield what is to be told of: every matrix (error, speed, the time left), steps of what comes before, messages."""

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    if not console.is_terminal:
        yield (lambda done: say(_line(done))), PlainStage(say, ends=True), say
        return
    columns = (
        TextColumn("{task.description}", style="progress.description", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    names = [job.matrix.name for job in plan.jobs]
    shapes = ["×".join(map(str, job.matrix.shape)) for job in plan.jobs]
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(f"{names[0]} {shapes[0]}", total=plan.weights, rate="")
        finished, computed, seconds = 0, 0, 0.0

        def after(done: Done) -> None:
            nonlocal finished, computed, seconds
            finished += 1
            if not done.resumed:
                computed += done.job.weights
                seconds += done.seconds
            following = f"{names[finished]} {shapes[finished]}" if finished < len(names) else "writing the bundle"
            rate = f"{computed / seconds / 1e6:.2f} M weights/s" if seconds else ""
            bar.print(_line(done), highlight=False, markup=False, soft_wrap=True)
            bar.update(task, advance=done.job.weights, description=following, rate=rate)

        steps: dict[str, TaskID] = {}

        def stage(what: str, done: int, total: int) -> None:
            if what not in steps:
                steps[what] = bar.add_task(what, total=total, rate="")
            bar.update(steps[what], completed=done, total=total, visible=done < total)

        yield after, stage, say


def _line(done: Done) -> str:
    """One finished matrix in one line."""
    record, shape = done.record, "×".join(map(str, done.job.matrix.shape))
    parts = [f"{done.job.matrix.name}  {shape}"]
    if record.converged is not None:
        parts.append(f"{record.iterations} iterations" + ("" if record.converged else " (not converged)"))
    kept = {"kept": "kept dense", "fallback": f"encoded with {record.encoder}, {record.levels} levels, instead"}
    parts += [kept[record.outcome]] if record.outcome in kept else []
    parts += [f"relative error {record.relative_error:.4f}"] if record.outcome != "kept" else []
    rate = f"{done.job.weights / max(done.seconds, 1e-9) / 1e6:.2f} M weights/s"
    parts.append("resumed from an earlier run" if done.resumed else rate)
    return "  ".join(parts)
