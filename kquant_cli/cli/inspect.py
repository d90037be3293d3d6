"""`kquant inspect`: what a bundle says about itself."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kquant_cli.cli.bundle_argument import bundle_or_newest
from kquant_cli.cli.console import console, log, write_results
from kquant_cli.cli.results_file import require_results_file


def inspect(
    bundle: Annotated[Path | None, typer.Argument(help="A bundle; by default the newest under bundles/.")] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Compare every file with its SHA-256 before; see also: kquant verify.")
    ] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", dir_okay=False, help="Write the numbers here as JSON.")
    ] = None,
) -> None:
    """Show each layer's error, convergence and bits, the totals, and the evaluations kept beside the bundle.

    Example: kquant inspect bundles/opt-1.3b-annealed-4bit --json layers.json
    """
    from kquant_cli.bundle import open_bundle
    from kquant_cli.report import evaluation_table, layer_table, summarise, totals_table

    require_results_file(json_file)
    named = bundle_or_newest(None if bundle is None else str(bundle), "inspecting")
    summary = summarise(open_bundle(named, verify=verify))
    console.print(layer_table(summary))
    console.print(totals_table(summary))
    if summary["results"]:
        console.print(evaluation_table(summary["results"]))
        for result in summary["results"]:
            line = f"{result['measured'][:10]} {result['sentence']}"
            console.print(line, highlight=False, soft_wrap=True, markup=False)
    for sentence in summary["refused"]:
        log.print(sentence, highlight=False, soft_wrap=True, markup=False)
    if json_file is not None:
        write_results(json_file, summary)
