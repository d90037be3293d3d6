"""Encoders: weight (out_features, in_features) -> EncodedMatrix.

`encoder` says what an encoder is, one file or folder has each of them, and `registry` lists them; `encode` runs one.
"""

from kquant_cli.encoders.encode import (
    check_bases,
    encode,
    encode_in_metric,
    encoded_bytes,
    relative_error,
    rounds_by_threads,
    takes_metric,
    unit_losses,
)
from kquant_cli.encoders.encoder import Encoder, EncoderSettings
from kquant_cli.encoders.metric import Metric
from kquant_cli.encoders.registry import DEFAULT, ENCODERS, own_settings, settings_of_all

__all__ = [
    "DEFAULT",
    "ENCODERS",
    "Encoder",
    "EncoderSettings",
    "Metric",
    "check_bases",
    "encode",
    "encode_in_metric",
    "encoded_bytes",
    "own_settings",
    "relative_error",
    "rounds_by_threads",
    "settings_of_all",
    "takes_metric",
    "unit_losses",
]
