"""The settings of the annealed encoder."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from kquant_cli.encoders.encoder import EncoderSettings


class AnnealedSettings(EncoderSettings):
    """Settings of the annealing."""

    effort: Literal["fast", "balanced", "best"] = Field(
        "balanced", description="how long the annealing takes: 20, 60 or 400 sweeps"
    )
    codebook: Literal["auto", "ring", "product"] = Field(
        "auto", description="where the centroids lie: on a circle, on a grid, or where less error is expected"
    )
    side: Literal["auto", "input", "output"] = Field(
        "auto",
        description="anneal rows (input) or columns (output); auto: columns in the metric of a calibration, else rows",
    )
