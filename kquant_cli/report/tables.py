"""A summary as rich tables: one row a layer, and the totals."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

BARS = "▁▂▃▄▅▆▇█"


def layer_table(summary: Mapping[str, Any]) -> Table:
    """A row a layer: shape, encoder and levels where they differ, iterations, |u|_inf, |v|_inf, error, bits, trace.

    Where matrices were calibrated on a text, the loss in its metric stands beside the error, both as square roots.
    """
    layers = summary["layers"]
    encoders = {layer["name"]: _encoder(layer, layers) for layer in layers}
    mixed = len(set(encoders.values())) > 1
    many = len(_histogram(layers)) > 1
    prefix = common_prefix([layer["name"] for layer in layers])
    title = f"{summary['bundle']}: {prefix + '*' if prefix else 'layers'}"
    bases = {layer["basis"] for layer in layers} - {None}
    title += f", {bases.pop()}" if mixed and len(bases) == 1 else ""
    title += "" if mixed else f", {next(iter(encoders.values()), '')}"
    table = Table(title=escape(title), title_justify="left", box=SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    table.add_column("layer", overflow="fold", min_width=16)
    columns = {
        "shape": ["×".join(map(str, layer["shape"])) for layer in layers],
        "encoder": [escape(encoder) for encoder in encoders.values()] if mixed else [],
        "levels": [str(layer.get("levels") or "") for layer in layers] if many else [],
        "steps": [_steps(layer) for layer in layers],
        "|u|": [_number(layer["u_max"]) for layer in layers],
        "|v|": [_number(layer["v_max"]) for layer in layers],
        "error": [f"{layer['relative_error']:.4f}" for layer in layers],
        "loss": [_loss(layer) for layer in layers],
        "bits": [f"{layer['bits_per_weight']:.3f}" if layer["bits_per_weight"] else "" for layer in layers],
        "residual": [drawing(layer["trace"]) for layer in layers],
    }
    shown = {heading: cells for heading, cells in columns.items() if any(cells)}  # of an encoder that has such
    for heading in shown:
        table.add_column(
            heading, justify="left" if heading in ("shape", "encoder", "residual") else "right", no_wrap=True
        )
    for layer, *cells in zip(layers, *shown.values(), strict=True):
        table.add_row(escape(layer["name"].removeprefix(prefix)), *cells)
    return table


def totals_table(summary: Mapping[str, Any]) -> Table:
    """What was encoded, in how many bits, with what error, and what did not converge."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    source, missed = summary["source"], summary["not_converged"]
    revision = f" at {source['revision'][:12]}" if source["revision"] else ""
    table.add_row("source", escape(f"{source['name']}{revision}"))
    table.add_row(
        "encoded",
        f"{summary['encoded_weights']:,} of {summary['parameters']:,} parameters ({summary['encoded_share']:.1%})",
    )
    bits = f"{summary['bits_per_weight']:.3f} an encoded weight, {summary['bits_per_weight_model']:.3f} a parameter"
    table.add_row("bits", bits)
    if len(counts := _histogram(summary["layers"])) > 1:
        table.add_row(
            "levels", ", ".join(f"{n} {'layer' if n == 1 else 'layers'} with {k}" for k, n in sorted(counts.items()))
        )
    if allocation := summary.get("allocation"):
        reached = f"{allocation['reached_bits']:.4f} bits of {allocation['target_bits']:g}"
        table.add_row("average", escape(f"{reached}, by sensitivities on {_tokens(allocation['sensitivities'])}"))
    if statistics := summary.get("statistics"):
        table.add_row(*map(escape, _statistics(statistics)))
    if tuning := summary.get("tuning"):
        table.add_row("tuning", escape(_tuning(tuning)))
    sizes = f"{summary['source_bytes'] / 1e6:.2f} MB -> {summary['bytes'] / 1e6:.2f} MB"
    table.add_row("size", f"{sizes}, {summary['ratio']:.2f} times smaller")
    table.add_row("relative squared error", f"{summary['relative_squared_error']:.5f} (mean over encoded weights)")
    if missed:
        shown = ", ".join(missed[:4]) + (f" and {len(missed) - 4} more" if len(missed) > 4 else "")
        table.add_row("not converged", f"[yellow]{len(missed)} of {len(summary['layers'])} layers: {escape(shown)}[/]")
    for note in summary["notes"]:
        table.add_row("note", f"[yellow]{escape(note)}[/]")
    return table


def drawing(trace: Sequence[float], width: int = 10) -> str:
    """A trace of residuals on a logarithmic scale from 1 down to 1e-6, in `width` characters."""
    if not trace:
        return ""
    width = min(width, len(trace))
    picked = [trace[(i * (len(trace) - 1)) // max(1, width - 1)] for i in range(width)]
    heights = [1 + math.log10(min(1.0, max(value, 1e-6))) / 6 for value in picked]
    return "".join(BARS[round(height * (len(BARS) - 1))] for height in heights)


def common_prefix(names: Sequence[str]) -> str:
    """What all dotted names begin with, in whole components with the last dot; "" for fewer than two names."""
    if len(names) < 2:
        return ""
    first, last = min(names).split("."), max(names).split(".")
    same = takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))
    return "".join(f"{part}." for part, _ in same)


def _encoder(layer: Mapping[str, Any], layers: Sequence[Mapping[str, Any]]) -> str:
    """The encoder of a layer, with its basis where it is not that of all."""
    if layer["encoder"] is None:
        return "dense"
    alike = len({other["encoder"] for other in layers}) > 1 and len({other["basis"] for other in layers} - {None}) < 2
    return f"{layer['encoder']}, {layer['basis']}" if layer["basis"] and not alike else str(layer["encoder"])


def _histogram(layers: Sequence[Mapping[str, Any]]) -> Counter[int]:
    """How many encoded layers have how many levels."""
    return Counter(layer["levels"] for layer in layers if layer.get("levels") is not None)


def _statistics(statistics: Mapping[str, Any]) -> tuple[str, str]:
    """What the model was measured on, and what for."""
    source = statistics["source"]
    if "text_sha256" in statistics:
        return "calibration", f"{_tokens(source)}, {statistics['tokens']:,} tokens"
    words = "none" if source == "none" else f"{_tokens(source)}, {len(statistics.get('groups', ()))} inputs"
    return "channel scaling", words


def _tuning(tuning: Mapping[str, Any]) -> str:
    values = (tuning["held_out_divergence"][when] for when in ("before", "after"))
    before, after = ("undefined" if value is None else f"{value:.4f}" for value in values)
    size = f"{tuning['steps']} steps of scales and norms on {tuning['tokens']:,} tokens"
    return f"{size}, held-out KL {before} -> {after} nats a token"


def _loss(layer: Mapping[str, Any]) -> str:
    loss = layer.get("metric_loss")
    return "" if loss is None else f"{math.sqrt(max(loss, 0.0)):.4f}"


def _tokens(source: str) -> str:
    """Where tokens come from, in words; a text by its name."""
    words = {"random": "random tokens", "data-free": "random tokens", "own": "the model's own text"}
    return words.get(source) or source.partition(" (SHA-256")[0]


def _steps(layer: Mapping[str, Any]) -> str:
    if not layer["trace"]:
        return ""
    return f"{layer['iterations']}" if layer["converged"] is not False else f"[yellow]{layer['iterations']}![/]"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
