"""Encoded matrices whose scales are parameters, in place of the model's linear layers.

    y = x W^^T + bias,    W^ = diag(scale) P diag(col_scale) R^T,    P = L_u Cu[codes] + L_v Cv[codes]

The product is taken from the right, so that gradients of the scales have the size of activations, and none that of W.
P and R are held in the dtype of the model. The scales are those of the bundle times parameters near one, so that one
rate of learning suits all.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from kquant_cli.bases import BasisSpec, basis_for
from kquant_cli.encoded import EncodedMatrix, Frame


class TunedLinear(nn.Module):
    """An encoded matrix with a scale of rows and of columns, both to be tuned."""

    def __init__(self, encoded: EncodedMatrix, right: Tensor, bias: nn.Parameter | None) -> None:
        super().__init__()
        assert encoded.scale is not None and encoded.col_scale is not None
        device = right.device
        own = replace(encoded.layout, scale=None, col_scale=False, frame=_left(encoded.layout.frame))
        held = EncodedMatrix(own, encoded.codes.to(device), encoded.codebook.to(device)).decode()
        self.right, self.held, self.bias = right, held.to(right.dtype), bias
        self.scale_before = encoded.scale.to(device).float().squeeze(1)
        self.col_scale_before = encoded.col_scale.to(device).float()
        self.scale_change = nn.Parameter(torch.ones_like(self.scale_before))
        self.col_scale_change = nn.Parameter(torch.ones_like(self.col_scale_before))

    @property
    def scale(self) -> Tensor:
        """The row scale (rows,), float32."""
        return self.scale_before * self.scale_change

    @property
    def col_scale(self) -> Tensor:
        """The column scale (columns,), float32."""
        return self.col_scale_before * self.col_scale_change

    def forward(self, x: Tensor) -> Tensor:
        """y (..., rows) of x (..., columns), in x's dtype."""
        z = (x @ self.right) * self.col_scale.to(x.dtype)
        y = (z @ self.held.T) * self.scale.to(x.dtype)
        return y if self.bias is None else y + self.bias.to(y.dtype)


def can_be_tuned(encoded: EncodedMatrix) -> bool:
    """Whether a matrix has the two scales and one basis on the right."""
    layout = encoded.layout
    return (
        layout.col_scale
        and layout.scale == (layout.shape[0], 1)
        and layout.frame.right_u == layout.frame.right_v
        and not layout.channel_scale
    )


def right_basis(spec: BasisSpec | None, columns: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """R (columns, columns); the identity where there is none."""
    eye = torch.eye(columns, device=device)
    return (eye if spec is None else basis_for(spec).apply(eye).T).to(dtype).contiguous()


def _left(frame: Frame) -> Frame:
    return Frame(left_u=frame.left_u, left_v=frame.left_v)
