"""`kquant compress`: a checkpoint becomes a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kquant_cli.cli.console import console, log, write_results

if TYPE_CHECKING:
    import torch
    from rich.table import Table

    from kquant_cli.compress.plan import Plan

OUTPUT = "Output"
NOT_SETTINGS = ("model", "output", "config", "revision", "device", "overwrite", "dry_run", "json_file")


def _setting(text: str) -> Any:
    return typer.Option(help=text, rich_help_panel="Settings (over those of --config, over the defaults)")


def _output(text: str, *names: str) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=OUTPUT)


def compress(
    model: Annotated[str, typer.Argument(help="A Hugging Face model: hub id or folder.")],
    output: Annotated[Path | None, _output("The bundle; else bundles/MODEL-ENCODER-BITSbit.", "--output", "-o")] = None,
    config: Annotated[Path | None, typer.Option(help="A YAML file of settings, such as configs/default.yaml.")] = None,
    bits: Annotated[float | None, _setting("Bits of a code, 1 to 8; a fraction such as 3.25 is an average.")] = None,
    levels: Annotated[int | None, _setting("Centroids, 2 to 256, in place of 2^bits: 3, 5, 6, 12, ...")] = None,
    encoder: Annotated[str | None, _setting("annealed (the default), greedy (the paper), uniform or kmeans.")] = None,
    effort: Annotated[str | None, _setting("Sweeps of the annealing: fast (20), balanced (60) or best (400).")] = None,
    stats: Annotated[
        str | None, _setting("Inputs that channel scales are measured on: random (tokens), a text file, or none.")
    ] = None,
    sensitivity: Annotated[
        str | None, _setting("Tokens that an average of bits is spread by: data-free, or a text file.")
    ] = None,
    codebook: Annotated[str | None, _setting("Where annealed's centroids lie: auto, ring or product.")] = None,
    side: Annotated[str | None, _setting("Anneal rows (input) or columns (output).")] = None,
    basis: Annotated[
        str | None,
        _setting("dct, hadamard, butterfly, qr, signed_dct, signed_dct_ii, signed_hadamard, householder, givens."),
    ] = None,
    basis_count: Annotated[int | None, _setting("Factors of a butterfly, householder or givens basis.")] = None,
    rule: Annotated[str | None, _setting("Which of u and v takes the next step: greedy or alternating.")] = None,
    form: Annotated[str | None, _setting("Decompose at once (matrix) or row by row (vector).")] = None,
    max_iter: Annotated[int | None, _setting("Most iterations of a decomposition.")] = None,
    tol: Annotated[float | None, _setting("Relative residual that counts as converged.")] = None,
    init: Annotated[str | None, _setting("Start of k-means: grid, kmeans++ or peaks (of 2^n levels).")] = None,
    restarts: Annotated[int | None, _setting("Starts of k-means, the best counts.")] = None,
    group_size: Annotated[int | None, _setting("Columns that share a scale in uniform; 0: one range a tensor.")] = None,
    seed: Annotated[int | None, _setting("Seed of the bases, k-means++ and random tokens.")] = None,
    include: Annotated[list[str] | None, _setting("Pattern of further matrices to encode; repeatable.")] = None,
    exclude: Annotated[list[str] | None, _setting("Pattern of matrices that stay dense; repeatable.")] = None,
    on_no_convergence: Annotated[
        str | None, _setting("A matrix that has not converged: encode it, keep it dense, or ENCODER[:BITS].")
    ] = None,
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

    The paper's encoder: kquant compress facebook/opt-1.3b --encoder greedy --stats none --basis butterfly
    """
    flags = {k: v for k, v in locals().items() if k not in NOT_SETTINGS and v is not None}
    if bits is not None and float(bits).is_integer():
        flags["bits"] = int(bits)  # as it was typed
    from kquant_cli.bundle import open_bundle
    from kquant_cli.checkpoint import open_checkpoint
    from kquant_cli.cli.progress import show_progress
    from kquant_cli.compress.pipeline import compress as run
    from kquant_cli.compress.plan import default_output, make_plan
    from kquant_cli.config import load_config
    from kquant_cli.devices import resolve_device
    from kquant_cli.report import summarise, totals_table

    settings = load_config(config, flags)
    where = resolve_device(device)
    plan = make_plan(open_checkpoint(model, revision), settings)
    out = output or default_output(plan.checkpoint, settings)
    if dry_run:
        if any(job.config.is_average for job in plan.jobs):
            plan = _allocated(plan, out, where)
        values = _plan(plan, out)
        console.print(_plan_table(values))
        share = f"{plan.weights:,} of {plan.parameters:,} parameters ({values['encoded_share']:.1%})"
        console.print(f"to be encoded: {share}", highlight=False)
        console.print(f"size: {plan.source_bytes / 1e6:.2f} MB -> {_size(plan)}", highlight=False)
        for note in plan.notes:
            log.print(f"note: {note}", highlight=False, markup=False)
    else:
        try:
            with show_progress(plan, log) as (progress, stage, say):
                made = run(plan, out, device=where, overwrite=overwrite, progress=progress, stage=stage, say=say)
        except KeyboardInterrupt:
            log.print("interrupted: the same command goes on from what is finished", highlight=False)
            raise typer.Exit(130) from None
        if not made:
            log.print(
                f"{out}: this very bundle is there already, complete; nothing to do", highlight=False, markup=False
            )
        values = summarise(open_bundle(out, verify=False))
        console.print(totals_table(values))
        console.print(f"bundle: {out}", highlight=False, markup=False)
    if json_file is not None:
        write_results(json_file, values)


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
