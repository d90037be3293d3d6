"""`kquant bench`: tokens a second, memory and load time, a bundle beside the dense model."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from kquant_cli.cli.bundle_argument import bundle_or_newest
from kquant_cli.cli.console import console, log, write_results
from kquant_cli.cli.results_file import require_results_file


def bench(
    bundle: Annotated[str | None, typer.Argument(help="A bundle; by default the newest under bundles/.")] = None,
    against: Annotated[
        str | None,
        typer.Option(help="Also measure this dense model, in 16 bits and, on a CPU, in float32."),
    ] = None,
    prompt_tokens: Annotated[
        int | None,
        typer.Option(
            help="Tokens of the prompt, read at once (prefill). Default: 256, or what the model has room for."
        ),
    ] = None,
    new_tokens: Annotated[int, typer.Option(help="Tokens made one by one (decode).")] = 32,
    rounds: Annotated[int, typer.Option(help="Each model is measured so often, in turns.")] = 2,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    dtype: Annotated[
        str,
        typer.Option(help="Of the bundle: auto (the source's), float32, float16, bfloat16."),
    ] = "auto",
    json_file: Annotated[
        Path | None, typer.Option("--json", dir_okay=False, help="Write the numbers here as JSON.")
    ] = None,
) -> None:
    """Measure how fast a bundle runs, what memory it takes, and how far it is from the floor that the memory sets.

    The floor is the bytes of weights that a token must read over the bandwidth measured on the spot. Each model runs in
    a process of its own.

    Example: kquant bench bundles/opt-1.3b-annealed-4bit --against facebook/opt-1.3b --json speed.json
    """
    from kquant_cli.devices import resolve_device, resolve_dtype
    from kquant_cli.errors import KQuantError
    from kquant_cli.hf.loading import model_folder
    from kquant_cli.report.speed import speed_table
    from kquant_cli.runtime import running_dtype
    from kquant_cli.speed import Row, Workload
    from kquant_cli.speed import bench as measure_in_turns

    require_results_file(json_file)
    for flag, value in (("prompt-tokens", prompt_tokens), ("new-tokens", new_tokens), ("rounds", rounds)):
        if value is not None and value < 1:
            raise KQuantError(f"--{flag} is {value}: expected 1 or more")
    resolve_dtype(dtype, placed := resolve_device(device))
    path = bundle_or_newest(bundle, "measuring")
    for place in (path, against):
        if place is not None:
            model_folder(place)  # else said by a process of its own, seconds later
    rows = [Row(path, "bundle" if _is_bundle(path) else "dense", running_dtype(path, device, dtype))]
    if against is not None:
        dense = ["float32", "bfloat16"] if placed.type == "cpu" else ["auto"]
        rows += [Row(against, "bundle" if _is_bundle(against) else "dense", name) for name in dense]
    workload = Workload(prompt_tokens or _prompt_that_fits(path, new_tokens), new_tokens)
    measured = measure_in_turns(
        rows, device, workload, rounds, lambda line: log.print(line, highlight=False, markup=False)
    )
    entries = [
        {"path": row.path, "kind": row.kind}
        | asdict(found)
        | {"floor_tokens_per_second": found.floor_tokens_per_second}
        for row, found in zip(rows, measured, strict=True)
    ]
    console.print(speed_table(entries))
    if json_file is not None:
        write_results(json_file, {"workload": asdict(workload), "rounds": rounds, "models": entries})


def _is_bundle(path: str) -> bool:
    from kquant_cli.bundle import is_bundle

    return is_bundle(Path(path))


def _prompt_that_fits(path: str, new_tokens: int) -> int:
    """256 tokens, or as many as the maximum of the model in a folder leaves before `new_tokens`, but at least one."""
    from kquant_cli.checkpoint.file_roles import CONFIG
    from kquant_cli.hf.failures import FAILURES
    from kquant_cli.hf.limits import maximum_length
    from kquant_cli.hf.model_class import read_config
    from kquant_cli.hf.quiet import quiet

    if not (Path(path) / CONFIG).is_file():  # a model on the hub
        return 256
    try:
        with quiet():
            limit = maximum_length(read_config(path))
    except FAILURES:  # its loading will say what is wrong
        return 256
    return 256 if limit is None else max(1, min(256, limit - new_tokens))
