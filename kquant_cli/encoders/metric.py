"""What an error of a matrix costs, as calibration measured it.

    loss(E) = sum_i g_i e_i H e_i^T,    e_i the rows of E = W - W^,    H = E[w x x^T] over the inputs x of tokens

w is a token's weight and g (out_features,) that of an output, both from squared gradients (calibration/): for small
errors the loss is then the change of the model's own cross-entropy, up to a factor (arXiv 2505.07004, GuidedQuant).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Metric:
    """H in two halves (in_features, in_features), each of half of the tokens, and g (out_features,) or None: ones.

    What is chosen with one half is judged by the other. float32, of any common factor.
    """

    first: Tensor
    second: Tensor
    outputs: Tensor | None = None

    @property
    def inputs(self) -> Tensor:
        """H of all tokens."""
        return self.first + self.second

    def loss(self, error: Tensor, weight: Tensor) -> float:
        """loss(error) / loss(weight), both (out_features, in_features); 0 where nothing is lost."""
        inputs = self.inputs.to(weight.device)

        def of(matrix: Tensor) -> Tensor:
            rows = ((matrix @ inputs) * matrix).sum(dim=1, dtype=torch.float64)
            return rows.sum() if self.outputs is None else rows @ self.outputs.to(rows)

        whole = float(of(weight))
        return float(of(error)) / whole if whole > 0 else 0.0
