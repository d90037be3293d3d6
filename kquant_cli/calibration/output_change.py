"""How far a model's output has moved, as one number.

Where it gives logits, the mean of KL(P || P') in nats over its distributions (one a token, or one a sequence), P' the
moved ones. Where there are no distributions (a model without a head, or with one output for regression),
|f' - f|^2 / |f|^2 of the last hidden states or outputs stands in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from kquant_cli.divergence import kl_divergence
from kquant_cli.errors import KQuantError

LOGITS = ("logits", "prediction_logits")  # of BertForPreTraining and its kin
ENTRIES = 1 << 19  # logits worked on at a time: 2 MB in float32, so that they stay in the cache


@dataclass(frozen=True)
class Reference:
    """The unperturbed output: `values` (distributions, classes) are logits, or features where `logits` is False."""

    values: torch.Tensor
    logits: bool

    @classmethod
    def of(cls, output: Mapping[str, Any], what: str) -> Reference:
        """What `output` (a transformers output) holds to compare; `what` names the model in the KQuantError."""
        values, logits = _values(output, what)
        if not torch.isfinite(values).all():
            raise KQuantError(f"{what} computes numbers that are not finite: mend the checkpoint")
        return cls(values, logits)

    def divergence(self, output: Mapping[str, Any]) -> float:
        """KL(this || output), mean over the distributions, or the relative squared change of the features."""
        values, _ = _values(output, "the model")
        if not self.logits:
            change = torch.linalg.vector_norm(values - self.values) / torch.linalg.vector_norm(self.values)
            return float(change) ** 2
        step = max(1, ENTRIES // values.shape[1])
        pieces = zip(self.values.split(step), values.split(step), strict=True)
        sums = [kl_divergence(z, moved).sum(dtype=torch.float64) for z, moved in pieces]
        return float(torch.stack(sums).sum()) / len(values)


def _values(output: Mapping[str, Any], what: str) -> tuple[torch.Tensor, bool]:
    """What is compared, as rows, and whether they are logits."""
    found = next((output[name] for name in LOGITS if output.get(name) is not None), None)
    if found is None and output.get("start_logits") is not None:  # question answering: distributions over positions
        found = torch.stack((output["start_logits"], output["end_logits"]), dim=1)
    logits = found is not None and found.shape[-1] > 1
    found = output.get("last_hidden_state") if found is None else found
    if found is None:
        raise KQuantError(
            f"{what} gives neither logits nor hidden states, so its sensitivities cannot be measured: give a whole "
            f"number of bits"
        )
    return found.to(torch.promote_types(found.dtype, torch.float32)).flatten(0, -2), logits
