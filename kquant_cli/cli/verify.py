"""`kquant verify`: whether a bundle is what its manifest says, and what its source was."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kquant_cli.cli.bundle_argument import bundle_or_newest
from kquant_cli.cli.console import console, log, write_results


def verify(
    bundle: Annotated[Path | None, typer.Argument(help="A bundle; by default the newest under bundles/.")] = None,
    deep: Annotated[bool, typer.Option("--deep", help="Decode every matrix, too.")] = False,
    source: Annotated[
        str | None,
        typer.Option(
            help="The checkpoint that it was made of (hub id or folder): compute every recorded error anew, and "
            "compare all other tensors bit by bit."
        ),
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a --source on the hub.")] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", dir_okay=False, help="Write what was found here as JSON.")
    ] = None,
) -> None:
    """Check a bundle: names, sizes, digests, shapes, types, finite numbers, codes, what lies beside.

    Ends with exit code 0 where all is right, 1 where something is not, 2 where it cannot be checked.

    Example: kquant verify bundles/opt-1.3b-annealed-4bit --deep --source facebook/opt-1.3b
    """
    from rich.markup import escape
    from rich.table import Table

    from kquant_cli.bundle.verify import verify_bundle
    from kquant_cli.cli.stages import show_stages
    from kquant_cli.errors import KQuantError

    if revision is not None and source is None:
        raise KQuantError("--revision is that of a --source: give both, or neither")
    named = Path(bundle_or_newest(None if bundle is None else str(bundle), "checking"))
    with show_stages(log) as told:
        found = verify_bundle(named, deep=deep, told=told)
        faults = list(found.faults)
        if source is not None and found.bundle is not None:
            from kquant_cli.checkpoint import open_checkpoint
            from kquant_cli.compress.verify_source import source_faults

            faults += source_faults(found.bundle, open_checkpoint(source, revision), told)
    if faults:
        table = Table("what", "problem", title_justify="left")
        for fault in faults:
            table.add_row(escape(fault.name), escape(fault.sentence.replace(f"{named}/", "")))
        console.print(table)
    looked = f"{found.files} files, {found.tensors} tensors, {found.matrices} encoded matrices"
    looked += (", decoded" if deep else "") + (f", compared with {source}" if source is not None else "")
    verdict = "right" if not faults else f"{len(faults)} fault{'' if len(faults) == 1 else 's'}"
    console.print(f"{named}: {verdict} ({looked})", highlight=False, markup=False, soft_wrap=True)
    if json_file is not None:
        values = {
            "bundle": str(named),
            "right": not faults,
            "faults": [{"name": fault.name, "problem": fault.sentence} for fault in faults],
            **{"files": found.files, "tensors": found.tensors, "matrices": found.matrices},
            **{"deep": deep, "source": source},
        }
        write_results(json_file, values)
    if faults:
        raise typer.Exit(1)
