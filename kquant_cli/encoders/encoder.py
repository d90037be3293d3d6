"""What an encoder is: everything that the rest of kquant asks about one, in one object.

A new encoder is one file with its settings and its class, and one line in registry.py; configuration, command line, dry
run, channel scales and allocation then know it (docs/architecture.md has a worked example).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Generic, TypeVar

import torch

from kquant_cli.encoded import EncodedMatrix, Layout
from kquant_cli.encoders.metric import Metric
from kquant_cli.setting_types import Seed, Settings


class EncoderSettings(Settings):
    """The settings that every encoder has; those of one encoder are the fields of its subclass.

    A field's name is the key in YAML and the flag on the command line, its description the help. Two encoders may have
    a field of one name only if it is the same field (of a common base class). Checks go into the field's type.
    """

    seed: Seed = 0


Own = TypeVar("Own", bound=EncoderSettings)


class Encoder(ABC, Generic[Own]):
    """weight (out_features, in_features) -> EncodedMatrix with `levels` centroids (2 to 256)."""

    name: ClassVar[str]
    summary: ClassVar[str]  # a few words for --help
    Settings: type[Own]
    spreads_error: ClassVar[bool] = False  # evenly over the input channels, as rotations of the inputs do
    scale_dtype: ClassVar[torch.dtype] = torch.float16  # of the stored scales and column scales

    def refusal(self, levels: int, settings: Own) -> str | None:
        """Why it cannot have so many levels with these settings, as a sentence; None where it can."""
        return None

    @abstractmethod
    def layout(self, shape: tuple[int, int], levels: int, settings: Own) -> Layout:
        """The layout of a matrix (out_features, in_features), known before it is encoded."""

    @abstractmethod
    def encode(self, weight: torch.Tensor, levels: int, settings: Own) -> EncodedMatrix:
        """Encode a finite float32 or float64 weight on its device; the result has a record and that very layout.

        But for the exponent of a constant codebook, which is known only then.
        """

    def layout_in_metric(self, shape: tuple[int, int], levels: int, settings: Own) -> Layout | None:
        """The layout of a matrix that is encoded in a metric; None where this encoder, so set, takes none."""
        return None

    def encode_in_metric(
        self, weights: Sequence[torch.Tensor], metrics: Sequence[Metric], levels: int, settings: Own
    ) -> list[EncodedMatrix]:
        """Encode finite weights, all (out_features, in_features), each so that its metric's loss is small.

        For encoders with a `layout_in_metric`, which the results have but for the exponent.
        """
        raise NotImplementedError(f"{self.name} takes no metric")

    def unit_losses(self, weights: Sequence[torch.Tensor], metrics: Sequence[Metric], settings: Own) -> list[float]:
        """Of each weight the loss in its metric for an `expected_error` of 1, before it is encoded."""
        raise NotImplementedError(f"{self.name} takes no metric")

    @abstractmethod
    def expected_error(self, levels: int, settings: Own) -> float:
        """The relative squared error to be expected on Gaussian weights; above zero, for any number of levels."""

    def caution(self, device: torch.device) -> str | None:
        """What a user should know before a run on that device; None where there is nothing to say."""
        return None
