"""`kquant compress`: a checkpoint becomes a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kquant_cli.cli.console import console, log, write_results
from kquant_cli.cli.results_file import require_results_file

if TYPE_CHECKING:
    import torch
    from rich.table import Table

    from kquant_cli.compress.plan import Plan

OUTPUT = "Output"


def _output(text: str, *names: str) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=OUTPUT)


def compress(
    model: Annotated[str, typer.Argument(help="A Hugging Face model: hub id or folder.")],
    flags: dict[str, Any],
    output: Annotated[Path | None, _output("The bundle; else bundles/MODEL-ENCODER-BITSbit.", "--output", "-o")] = None,
    config: Annotated[Path | None, typer.Option(help="A YAML file of settings, such as configs/default.yaml.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    overwrite: Annotated[bool, _output("Replace another bundle of that name.", "--overwrite")] = False,
    dry_run: Annotated[
        bool, _output("Show the plan and the size only; for an average of bits, after measuring.", "--dry-run")
    ] = False,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", dir_okay=False, help="Write the summary (or the plan) as JSON.", rich_help_panel=OUTPUT),
    ] = None,
) -> None:
    """Compress a model, layer by layer. An interrupted run goes on when the same command runs again.

    Example: kquant compress facebook/opt-1.3b --bits 3.25 --effort best -o bundles/opt

    The paper's encoder: kquant compress facebook/opt-1.3b --encoder greedy --calibration none --basis butterfly
    """
    from kquant_cli.bundle import open_bundle
    from kquant_cli.checkpoint import open_checkpoint
    from kquant_cli.cli.progress import show_progress
    from kquant_cli.compress.pipeline import compress as run
    from kquant_cli.compress.pipeline import rehearse
    from kquant_cli.compress.plan import default_output, make_plan
    from kquant_cli.config import load_config
    from kquant_cli.devices import resolve_device
    from kquant_cli.report import summarise, totals_table

    require_results_file(json_file)
    settings = load_config(config, flags)
    where = resolve_device(device)
    plan = make_plan(open_checkpoint(model, revision), settings)
    out = output or default_output(plan.checkpoint, settings)
    if dry_run:
        with rehearse(plan, out, overwrite=overwrite, say=_say) as inside:
            if any(job.config.is_average for job in plan.jobs):
                plan = _allocated(plan, inside, where)
        values = _plan(plan, out)
        console.print(_plan_table(values))
        share = f"{plan.weights:,} of {plan.parameters:,} parameters ({values['encoded_share']:.1%})"
        console.print(f"to be encoded: {share}", highlight=False)
        console.print(f"size: {plan.source_bytes / 1e6:.2f} MB -> {_size(plan)}", highlight=False)
        for note in plan.notes:
            _say(f"note: {note}")
    else:
        try:
            with show_progress(plan, log) as (progress, stage, say):
                made = run(plan, out, device=where, overwrite=overwrite, progress=progress, stage=stage, say=say)
        except KeyboardInterrupt:
            log.print("interrupted: the same command goes on from what is finished", highlight=False)
            raise typer.Exit(130) from None
        if not made:
            _say(f"{out}: this bundle is already there and complete; nothing to do")
        values = summarise(open_bundle(out, verify=False))
        console.print(totals_table(values))
        console.print(f"bundle: {out}", highlight=False, markup=False)
    if json_file is not None:
        write_results(json_file, values)


def _say(line: str) -> None:
    log.print(line, highlight=False, markup=False)


def _allocated(plan: Plan, out: Path, device: torch.device) -> Plan:
    """The plan with a level count for every matrix; what is measured for it is kept for the real run."""
    from kquant_cli.checkpoint import content_hash
    from kquant_cli.cli.progress import show_progress
    from kquant_cli.compress.preparation import prepare

    with show_progress(plan, log) as (_, stage, say):
        prepared = prepare(plan, out, content_hash(plan.checkpoint), device=device, stage=stage, say=say)
    if prepared.allocation is not None:
        console.print(prepared.allocation.sentence(), highlight=False, soft_wrap=True)
    return prepared.plan


def _size(plan: Plan) -> str:
    """The size of the bundle's tensors in words."""
    size = f"{plan.estimated_bytes / 1e6:.2f} MB"
    if not plan.unknown_bytes:
        return size
    return f"about {size} (with channel scales, which the run measures: {plan.unknown_bytes / 1e6:.3f} MB more at most)"


def _plan(plan: Plan, out: Path) -> dict[str, Any]:
    layers = [
        {
            "name": job.matrix.name,
            "shape": list(job.matrix.shape),
            "encoder": job.config.encoder,
            "levels": job.config.level_count,
            "bytes": job.nbytes,
        }
        for job in plan.jobs
    ]
    return {
        "output": str(out),
        "layers": layers,
        "encoded_weights": plan.weights,
        "parameters": plan.parameters,
        "encoded_share": plan.weights / plan.parameters,
        "source_bytes": plan.source_bytes,
        "estimated_bytes": plan.estimated_bytes,
        "channel_scale_bytes_at_most": plan.unknown_bytes,
    }


def _plan_table(values: dict[str, Any]) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table

    from kquant_cli.report.tables import common_prefix

    prefix = common_prefix([layer["name"] for layer in values["layers"]])
    title = escape(f"Plan for {values['output']}: {prefix + '*' if prefix else 'layers'}")
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    table.add_column("layer", overflow="fold")
    for heading in ("shape", "encoder"):
        table.add_column(heading, no_wrap=True)
    for heading in ("levels", "bytes"):
        table.add_column(heading, justify="right", no_wrap=True)
    for layer in values["layers"]:
        shape = "×".join(map(str, layer["shape"]))
        name = escape(layer["name"].removeprefix(prefix))
        table.add_row(name, shape, layer["encoder"], str(layer["levels"]), f"{layer['bytes']:,}")
    return table
