"""The encoders by name, and the settings of all of them as one flat schema. A new encoder is one line here."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from pydantic import create_model

from kquant_cli.encoders.annealed import Annealed
from kquant_cli.encoders.encoder import Encoder, EncoderSettings
from kquant_cli.encoders.greedy import Greedy
from kquant_cli.encoders.kmeans import KMeans
from kquant_cli.encoders.uniform import Uniform
from kquant_cli.setting_types import Settings

ENCODERS: dict[str, Encoder[Any]] = {encoder.name: encoder for encoder in (Annealed(), Greedy(), Uniform(), KMeans())}
DEFAULT = Annealed.name


def own_settings(encoder: Encoder[Any]) -> list[str]:
    """The keys of the settings that the encoder has beside those of every encoder."""
    return [key for key in encoder.Settings.model_fields if key not in EncoderSettings.model_fields]


def settings_of_all() -> type[Settings]:
    """A schema with the own settings of every encoder, in the registry's order."""
    return _joined(tuple(ENCODERS.values()))


@lru_cache(maxsize=2)
def _joined(encoders: Sequence[Encoder[Any]]) -> type[Settings]:
    fields: dict[str, Any] = {}
    for encoder in encoders:
        for key in own_settings(encoder):
            field = encoder.Settings.model_fields[key]
            known = fields.setdefault(key, (field.annotation, field))[1]
            if repr(known) != repr(field):
                raise TypeError(f"encoder {encoder.name!r} has a setting {key!r} that another encoder has otherwise")
    return create_model("EncoderOptions", __base__=Settings, **fields)
