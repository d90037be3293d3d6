"""What is measured of a model before it is encoded, on random tokens or a text.

moments          E[y_j^2] of every layer's input, block by block (collect_moments, moments_cache), and from them channel
                 scales (channel_scaling); of the model a module at a time is in memory (lazy_*)
sensitivity      how much the predictions suffer from an error in each matrix (sensitivity, sensitivity_cache)

statistics = collect(checkpoint, [matrix.name for matrix in selection.matrices], "random", seed=0, device="cpu")
for group in statistics.groups:
    scale = white_error_scale(column_energy(weights_of(group.members)), group.second_moments)

Importing this room does not import transformers, which takes seconds; measuring does, and `import_early` does so
in a thread.
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
from kquant_cli.calibration.early_import import import_early
from kquant_cli.calibration.moments import InputGroup, InputStatistics
from kquant_cli.calibration.moments_cache import load_or_collect, statistics_path
from kquant_cli.calibration.text_source import (
    DATA_FREE,
    OWN,
    RANDOM,
    describe_source,
    is_causal,
    measuring_threads,
    text_digest,
)
from kquant_cli.calibration.unavailable import StatisticsUnavailable

__all__ = [
    "DATA_FREE",
    "OWN",
    "RANDOM",
    "InputGroup",
    "InputStatistics",
    "Scale",
    "StatisticsUnavailable",
    "channel_scale",
    "collect",
    "column_energy",
    "describe_source",
    "import_early",
    "is_causal",
    "load_or_collect",
    "measuring_threads",
    "predicted_loss",
    "searched_scale",
    "statistics_path",
    "text_digest",
    "white_error_scale",
]
