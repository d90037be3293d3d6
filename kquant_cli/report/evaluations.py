"""Evaluations as a rich table, from their JSON entries: of one run, or of all that a bundle keeps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Column, Table

Entry = Mapping[str, Any]


def evaluation_table(entries: Sequence[Entry]) -> Table:
    """A row a result where all have the same metrics, else a row a metric; with the original, its number beside it."""
    if any(entry.get("against") for entry in entries):
        return _compared(entries)
    same = len({tuple(entry["metrics"]) for entry in entries}) == 1
    return _wide(entries) if same else _long(entries)


def _wide(entries: Sequence[Entry]) -> Table:
    metrics, counts = list(entries[0]["metrics"]), list(entries[0].get("counts", {}))
    table = _table(["task", "model"], [*metrics, *counts, "seconds"])
    for entry in entries:
        numbers = [_measured(entry, name) for name in metrics]
        numbers += [f"{entry.get('counts', {}).get(name, 0):,}" for name in counts]
        table.add_row(escape(entry["task"]), model_name(entry), *numbers, _seconds(entry))
    return table


def _long(entries: Sequence[Entry]) -> Table:
    table = _table(["task", "model", "metric"], ["value", "seconds"])
    for entry in entries:
        head = [escape(entry["task"]), model_name(entry)]
        for metric in entry["metrics"]:
            measured = _measured(entry, metric)
            table.add_row(*head, _words(metric), measured, _seconds(entry) if head[0] else "")
            head = ["", ""]
    return table


def _compared(entries: Sequence[Entry]) -> Table:
    """A row a metric, the original's number beside it; the models stand above where they are the same for all."""
    pairs = {(model_name(entry), model_name(entry["against"]) if entry.get("against") else None) for entry in entries}
    (model, original), *others = pairs
    table = _table(["task", *(["model"] if others else []), "metric"], ["value", "original", "difference"])
    if not others:
        table.title, table.title_justify = f"{model} against {original}", "left"
    for entry in entries:
        head = [escape(entry["task"]), *([model_name(entry)] if others else [])]
        for row in _metric_rows(entry):
            table.add_row(*head, *row)
            head = [""] * len(head)
    return table


def _metric_rows(entry: Entry) -> Iterable[tuple[str, str, str, str]]:
    """Metric, value, the original's, and the difference with its standard error."""
    against = entry.get("against") or {}
    for name, value in entry["metrics"].items():
        difference = against.get("differences", {}).get(name)
        before = number(against["metrics"].get(name)) if against else ""
        yield _words(name), number(value), before, _estimate(difference, "+.4f", ".4f")
    if against.get("kl_divergence"):
        yield "KL divergence", _estimate(against["kl_divergence"], ".4g", ".2g"), "", ""
    if against.get("agreement") is not None:
        yield f"same {'label' if against.get('per') == 'example' else 'token'}", f"{against['agreement']:.2%}", "", ""


def model_name(entry: Entry) -> str:
    """The model's folder, dense or bundle, as markup."""
    return escape(f"{Path(str(entry.get('model', ''))).name} ({entry.get('model_kind', '')})")


def number(value: float | None) -> str:
    """A metric's value; None is what JSON has for an infinite or undefined one."""
    if value is None:
        return "undefined"
    return f"{value:.4f}" if abs(value) < 1e5 else f"{value:.4e}"


def _measured(entry: Entry, metric: str) -> str:
    """A metric's value, with its standard error where the result has one."""
    error = (entry.get("standard_errors") or {}).get(metric)
    return number(entry["metrics"][metric]) + ("" if error is None else f" ± {number(error)}")


def _estimate(estimate: Mapping[str, Any] | None, value: str, error: str) -> str:
    """The number and its standard error, each in its format."""
    if estimate is None:
        return ""
    if estimate["value"] is None:
        return "undefined"
    spread = "" if estimate["standard_error"] is None else f" ± {estimate['standard_error']:{error}}"
    return f"{estimate['value']:{value}}{spread}"


def _seconds(entry: Entry) -> str:
    return f"{entry.get('seconds', 0):.1f}"


def _words(name: str) -> str:
    """A name of a metric, as markup."""
    return escape(name.replace("_", " "))


def _table(words: Sequence[str], numbers: Sequence[str]) -> Table:
    return Table(
        *(Column(word, overflow="fold") if word == "model" else Column(word, no_wrap=True) for word in words),
        *(Column(_words(name), justify="right", no_wrap=True) for name in numbers),
    )
