"""Blocks of errors and perplexities, from the files of measure_errors.py and compare_quality.py."""

from __future__ import annotations

import math
import statistics
from typing import Any

from mdtable import place, table

PEERS = ("HIGGS-like grid, p = 2", "rotation + Lloyd-Max", "HQQ, groups of 64", "NF4, groups of 64")


def errors(values: dict[str, Any]) -> str:
    """Relative squared errors on Gaussian matrices, as scripts/measure_errors.py wrote them."""
    headings = ["bits", "fast", "balanced", "best", "best over the bound", "planar grid", "rotation + Lloyd-Max"]
    headings += ["greedy (paper)", "bound 4^-bits"]
    rows = []
    for row in values["gaussian"]:
        gap = f"{10 * math.log10(row['best'] / row['bound']):.2f} dB"
        others = [f"{row[key]:.3g}" if key in row else "" for key in ("grid", "lloyd_max", "greedy")]
        ours = [f"**{row[key]:.3g}**" if key == "best" else f"{row[key]:.3g}" for key in ("fast", "balanced", "best")]
        rows.append([f"{row['rate']:.3f}".rstrip("0").rstrip("."), *ours, gap, *others, f"{row['bound']:.3g}"])
    size, seeds = values["size"], values["seeds"]
    return f"{table(headings, rows)}\n\n{size} x {size}, mean of {seeds} seeds. Machine: {place(values['machine'])}."


def kinds(values: dict[str, Any]) -> str:
    """Errors on other matrices over the Gaussian ones, as scripts/measure_errors.py wrote them."""
    rows = [
        [row["kind"], "×".join(map(str, row["shape"])), *(f"{row[bits]:.3f}" for bits in ("2", "3", "4"))]
        for row in values["others"]
    ]
    return table(["weights", "shape", "2 bits", "3 bits", "4 bits"], rows)


def compared(values: dict[str, Any]) -> str:
    """Perplexities of all methods, as scripts/compare_quality.py wrote them: a row for a rate and method."""
    dense, found = values["dense"], {(r["rate"], r["method"], r["scaled"]): r for r in values["rows"]}
    headings = ["method", "bits a weight", "rel. sq. error", "perplexity", "over annealed", "without channel scales"]
    rows = [["dense", "16", "", f"{math.exp(sum(dense) / len(dense)):.2f}", "", ""]]
    for rate in sorted({row["rate"] for row in values["rows"]}, reverse=True):
        ours = found[rate, "annealed", True]
        names = dict.fromkeys(row["method"] for row in values["rows"] if row["rate"] == rate)
        order = sorted(names, key=lambda name: statistics.fmean(_losses(found, rate, name)))
        for name in order:
            scaled, plain = found.get((rate, name, True)), found.get((rate, name, False))
            facts = scaled or plain
            mark = "**" if name.startswith("annealed") else ""
            cells = [f"{mark}{name}{mark}", f"{facts['bits']:.3f}", f"{facts['error']:.4f}"]
            cells += [_perplexity(scaled, dense), _over(scaled, ours), _perplexity(plain, dense)]
            rows.append(cells)
    windows = f"{len(dense)} windows of {values['seqlen']} tokens" if values["seqlen"] else f"{len(dense)} windows"
    return f"{table(headings, rows)}\n\n{windows}. Machine: {place(values['machine'])}."


def at_equal_bits(values: dict[str, Any]) -> str:
    """Annealed and its best peers at 4, 3 and 2 bits: perplexity, and the bits that are really stored."""
    found = {(row["rate"], row["method"]): row for row in values["rows"] if row["scaled"]}
    rates = (4, 3, 2)
    rows = [
        ["**annealed**" if name == "annealed" else name, *(_with_bits(found.get((rate, name))) for rate in rates)]
        for name in ("annealed", *PEERS)
    ]
    dense = math.exp(statistics.fmean(values["dense"]))
    headings = ["perplexity (bits a weight)", *(f"{rate} bits" for rate in rates)]
    return (
        f"{table(headings, rows)}\n\nDense: {dense:.2f}. {len(values['dense'])} windows of {values['seqlen']} tokens. "
        f"Machine: {place(values['machine'])}."
    )


def _with_bits(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    value = math.exp(statistics.fmean(row["losses"]))
    return f"{value:.2f} ({row['bits']:.2f})" if value < 1e4 else f"{value:.1e} ({row['bits']:.2f})"


def _losses(found: dict[Any, dict[str, Any]], rate: float, name: str) -> list[float]:
    return (found.get((rate, name, True)) or found[rate, name, False])["losses"]


def _perplexity(row: dict[str, Any] | None, dense: list[float]) -> str:
    """The perplexity, and the paired standard error of its difference to the dense model's."""
    if row is None:
        return ""
    value = math.exp(min(statistics.fmean(row["losses"]), 700))
    error = value * difference(row["losses"], dense)[1]
    return f"{value:.2f} ± {error:.2f}" if value < 1e4 else f"{value:.1e}"


def _over(row: dict[str, Any] | None, ours: dict[str, Any]) -> str:
    """The perplexity over annealed's with its paired standard error, in percent."""
    if row is None or row is ours:
        return ""
    log_ratio, error = difference(row["losses"], ours["losses"])
    return f"{100 * math.expm1(log_ratio):+.1f} ± {100 * error:.1f}%" if log_ratio < 2 else "> 7 times"


def difference(losses: list[float], other: list[float]) -> tuple[float, float]:
    """Mean difference of the windows' losses (nats a token), and its paired standard error."""
    pairs = [a - b for a, b in zip(losses, other, strict=True)]
    return statistics.fmean(pairs), statistics.stdev(pairs) / math.sqrt(len(pairs)) if len(pairs) > 1 else 0.0


def calibrated(values: dict[str, Any]) -> str:
    """What calibration and tuning buy, as scripts/compare_calibrated.py wrote it: a row for a rate and variant."""
    headings = ["bits", "variant", "seeds", "bits a weight", "perplexity", "other text", "KL, nats a token", "KL, 99%"]
    headings += ["same top token", "tuning steps", "minutes in all", "peak memory, GB"]
    dense = values["dense"]
    rows = [["16", "dense", "", "16", f"{dense['perplexity']:.2f}", f"{dense['other']:.2f}", *[""] * 6]]
    found: dict[tuple[float, str], list[dict[str, Any]]] = {}
    for row in values["rows"]:
        found.setdefault((row["rate"], row["variant"]), []).append(row)
    for (rate, variant), same in sorted(found.items(), key=lambda item: -item[0][0]):
        steps = [row["tuning"]["steps"] for row in same if row["tuning"]]
        cells = [f"{rate:g}", variant, ", ".join(str(row["seed"]) for row in same), f"{same[0]['bits']:.3f}"]
        cells += [_spread(same, "perplexity", ".2f"), _spread(same, "other", ".2f")]
        cells += [_spread(same, "kl", ".4f"), _spread(same, "kl_99", ".3f"), _spread(same, "same_top", ".3f")]
        cells += [", ".join(map(str, steps)), f"{statistics.fmean(row['seconds'] for row in same) / 60:.0f}"]
        peaks = [row["peak"] for row in same if row["peak"]]
        rows.append([*cells, f"{max(peaks) / 1e9:.1f}" if peaks else ""])
    count, length = values["windows"]
    said = (
        f"{values['model']}, {count} windows of {length} tokens of each text, tuning of {values['minutes']:g} minutes"
    )
    return f"{table(headings, rows)}\n\n{said}. Machine: {place(values['machine'])}."


def calibrated_at_equal_bits(values: dict[str, Any]) -> str:
    """The same in short: perplexity and divergence of what was tuned, and of what stands beside it."""
    found = {(row["rate"], row["variant"]): row for row in values["rows"] if row["seed"] == 0}
    rates = sorted({rate for rate, _ in found}, reverse=True)
    rows = []
    for variant in dict.fromkeys(variant for _, variant in found):
        cells = []
        for rate in rates:
            row = found.get((rate, variant))
            cells.append(f"{row['perplexity']:.2f}, {row['kl']:.3f} ({row['bits']:.2f})" if row else "")
        rows.append([f"**{variant}**" if variant == "tuned" else variant, *cells])
    headings = ["perplexity, KL (bits a weight)", *(f"{rate:g} bits" for rate in rates)]
    said = f"Dense: {values['dense']['perplexity']:.2f}. Seed 0, tuning of {values['minutes']:g} minutes"
    return f"{table(headings, rows)}\n\n{said}. Machine: {place(values['machine'])}."


def _spread(rows: list[dict[str, Any]], key: str, form: str) -> str:
    """The value of one row; of several the mean, and least and most."""
    values = [row[key] for row in rows]
    if len(values) == 1:
        return format(values[0], form)
    return f"{statistics.fmean(values):{form}} ({min(values):{form}} to {max(values):{form}})"
