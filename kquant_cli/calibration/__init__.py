"""Second moments of the layers' inputs, from random tokens or text, block by block, and the channel scales they give.

statistics = collect(checkpoint, [matrix.name for matrix in selection.matrices], "random", seed=0, device="cpu")
for group in statistics.groups:
    scale = white_error_scale(column_energy(weights_of(group.members)), group.second_moments)

Importing this room does not import transformers, which takes seconds; collecting does.
"""

from kquant_cli.calibration.channel_scaling import (
    Scale,
    channel_scale,
    column_energy,
    predicted_loss,
    searched_scale,
    white_error_scale,
)
from kquant_cli.calibration.collect_moments import collect
from kquant_cli.calibration.moments import InputGroup, InputStatistics
from kquant_cli.calibration.moments_cache import load_or_collect, statistics_path
from kquant_cli.calibration.text_source import describe_source
from kquant_cli.calibration.unavailable import StatisticsUnavailable

__all__ = [
    "InputGroup",
    "InputStatistics",
    "Scale",
    "StatisticsUnavailable",
    "channel_scale",
    "collect",
    "column_energy",
    "describe_source",
    "load_or_collect",
    "predicted_loss",
    "searched_scale",
    "statistics_path",
    "white_error_scale",
]
