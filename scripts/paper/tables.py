"""The tables of the README here, and one of docs/results.md's, from scripts/results/paper/ (by scripts/docs.py)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from mdtable import place, table

NAMES = {"rte": "RTE", "mrpc": "MRPC", "stsb": "STS-B", "cola": "CoLA", "sst2": "SST-2", "qnli": "QNLI"}


def convergence(values: dict[str, Any]) -> str:
    """Iterations until the tolerance, by matrix and form, or the residual where they did not suffice."""
    kinds = list(dict.fromkeys(row["basis"] for row in values["rows"]))
    cases = list(dict.fromkeys((row["matrix"], row["form"]) for row in values["rows"]))
    found = {(row["matrix"], row["form"], row["basis"]): row for row in values["rows"]}
    rows = [[f"{name}, {form}", *(_iterations(found[name, form, kind]) for kind in kinds)] for name, form in cases]
    last = (
        f"Tolerance {values['tol']:g}, at most {values['max_iter']} iterations: where they did not suffice, the "
        "residual in brackets. In vector form the slowest of the rows counts, and the residual is the root mean square "
        "over them."
    )
    return f"{table(['matrix, form', *kinds], rows)}\n\n{last}"


def _iterations(row: dict[str, Any]) -> str:
    return str(row["iterations"]) if row["converged"] else f"({row['residual']:.0e})"


def times(values: dict[str, Any]) -> str:
    """Seconds of the forms over those of the matrix form with the DCT."""
    found = {(row["n"], row["basis"], row["form"]): row["seconds"] for row in values["rows"]}
    kinds = [("dct", "matrix"), ("dct", "vector"), ("qr", "matrix"), ("qr", "vector")]
    rows = []
    for n in sorted({row["n"] for row in values["rows"]}):
        unit = found[n, "dct", "matrix"]
        ratios = [f"{found[n, *kind] / unit:.1f}" if (n, *kind) in found else "" for kind in kinds[1:]]
        rows.append([str(n), f"{1000 * unit:.1f} ms", *ratios])
    headings = ["n", "dct, matrix form", *(f"{kind}, {form} form: times that" for kind, form in kinds[1:])]
    return f"{table(headings, rows)}\n\nCPU time of one thread. Machine: {place(values['machine'])}."


def eigenvectors(values: dict[str, Any]) -> str:
    """The estimates by basis."""
    keys = ("real_least", "real_mean", "complex_least", "complex_mean")
    rows = [
        [row["label"], *(f"{row[key]:.3f}" for key in keys), f"{row['multiplicity']:.0f}"] for row in values["rows"]
    ]
    return table(["basis", *(key.replace("_", ", ") for key in keys), "equal eigenvalues"], rows)


def lambada(values: dict[str, Any]) -> str:
    """Perplexities."""
    headings = ["model", "row", "perplexity", "bits a weight", "encoded", "converged", "rel. sq. error"]
    rows = []
    for row in values["rows"]:
        shares = [f"{row[key]:.0%}" if key in row else "" for key in ("encoded_share", "converged_share")]
        value = row["metrics"]["perplexity"]
        number = f"{value:.2f}" if value < 1e4 else f"{value:.2g}"
        error = f"{row['error']:.4f}" if "error" in row else ""
        rows.append([row["model"], row["row"], number, f"{row['bits']:.2f}", *shares, error])
    protocol = values["rows"][0]["protocol"]
    return f"{table(headings, rows)}\n\n{protocol}. At most {values['max_iter']} iterations, {values['basis']} bases."


def glue(values: dict[str, Any], published: Iterable[str] = ("BERT-base", "RoBERTa-base")) -> str:
    """Our scores, then the paper's of the same tasks."""
    rows = values["rows"]
    tasks = sorted({row["task"] for row in rows}, key=list(NAMES).index)
    ours = {(row["row"], row["task"]): row["scores"] for row in rows}
    names = list(dict.fromkeys(row["row"] for row in rows))
    encoder = rows[0]["encoder"]
    lines = [[f"{encoder}: {name}", *(_scores(ours.get((name, task))) for task in tasks)] for name in names]
    for model in published:
        for name, scores in values["published"][model].items():
            lines.append([f"{model} (paper): {name}", *(_scores(scores.get(task)) for task in tasks)])
    iterations = f"Kashin: at most {values['max_iter']} iterations (the paper: 6000)."
    return f"{table(['4 bits but for float', *(NAMES[task] for task in tasks)], lines)}\n\n{iterations}"


def _scores(scores: list[float | None] | None) -> str:
    return "" if scores is None else "/".join("undefined" if s is None else f"{s:.2f}" for s in scores)


def short_glue(values: dict[str, Any]) -> str:
    """For docs/results.md: ours and BERT-base."""
    return glue(values, ["BERT-base"])


def quality(values: dict[str, Any]) -> str:
    """Errors, perplexity and time by basis."""
    fastest = min(row["seconds"] for row in values["rows"])
    names = list(values["rows"][0]["errors"])
    rows = [
        [
            row["label"],
            *(f"{row['errors'][name]:.4f}" for name in names),
            f"{row['perplexity']:.2f}" if "perplexity" in row else "",
            f"{row['seconds'] / fastest:.1f}",
        ]
        for row in values["rows"]
    ]
    perplexity = f"perplexity (dense {values['dense']:.2f})" if "dense" in values else "perplexity"
    return table(["basis", *names, perplexity, "CPU time over the least"], rows)


def stopping(values: dict[str, Any]) -> str:
    """Errors and perplexity by number of iterations, then by threshold."""
    names = list(values["rows"][0]["errors"])
    rows = []
    for row in values["rows"]:
        varied = f"{row['max_iter']} iterations" if row["varied"] == "max_iter" else f"residual below {row['tol']:g}"
        perplexity = f"{row['perplexity']:.2f}" if "perplexity" in row else ""
        rows.append([varied, *(f"{row['errors'][name]:.4f}" for name in names), perplexity])
    perplexity = f"perplexity (dense {values['dense']:.2f})" if "dense" in values else "perplexity"
    return table(["stopped after", *names, perplexity], rows)


def errors(values: dict[str, Any]) -> str:
    """Relative squared errors after clustering, and iterations, of pathological matrices."""
    methods = list(dict.fromkeys(row["method"] for row in values["rows"]))
    found = {(row["matrix"], row["method"]): row for row in values["rows"]}
    rows = []
    for name in dict.fromkeys(row["matrix"] for row in values["rows"]):
        cells = []
        for method in methods:
            row = found[name, method]
            star = "" if row.get("converged", True) else "\\*"
            cells.append(f"{row['relative_squared_error']:.2g}{star}")
        rows.append([name, *cells])
    last = f"\\* not converged in {values['max_iter']} iterations. {values['bits']} bits, size {values['size']}."
    return f"{table(['matrix', *methods], rows)}\n\n{last}"


BLOCKS: dict[str, tuple[str, Callable[[Any], str]]] = {  # of scripts/paper/README.md
    "convergence": ("paper/figure2_3.json", convergence),
    "times": ("paper/figure4.json", times),
    "eigenvectors": ("paper/table1.json", eigenvectors),
    "lambada": ("paper/table2.json", lambada),
    "lambada-smollm2": ("paper/table2-smollm2.json", lambada),
    "glue": ("paper/table3.json", glue),
    "errors": ("paper/pathological.json", errors),
    "bases": ("paper/bases.json", quality),
    "iterations": ("paper/iterations.json", stopping),
}
