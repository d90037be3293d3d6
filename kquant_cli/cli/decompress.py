"""`kquant decompress`: a bundle back into a plain dense checkpoint."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from kquant_cli.cli.console import console, log


class Dtype(StrEnum):
    """The types that a dense checkpoint may have."""

    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


def decompress(
    bundle: Annotated[Path, typer.Argument(help="The bundle.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the dense checkpoint.")],
    dtype: Annotated[Dtype | None, typer.Option(help="Type of the tensors; else the source's.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a checkpoint that is there.")] = False,
) -> None:
    """Write a bundle as a dense Hugging Face checkpoint that loads without kquant.

    Example: kquant decompress bundles/opt-1.3b-annealed-4bit -o dense/opt-1.3b --dtype float16
    """
    import torch

    from kquant_cli.bundle import open_bundle, write_dense
    from kquant_cli.bundle.output_folder import check_place

    check_place(output, bundle)  # before all of the bundle is read
    whole = open_bundle(bundle)
    target = getattr(torch, dtype) if dtype else None
    size = write_dense(
        whole, output, target, overwrite=overwrite, say=lambda line: log.print(line, highlight=False, markup=False)
    )
    console.print(
        f"{output}: {len(whole.layouts)} matrices decoded, {size / 1e6:.2f} MB", highlight=False, markup=False
    )
