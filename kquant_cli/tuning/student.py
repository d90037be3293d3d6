"""Encoded matrices whose scales are parameters, in place of the model's linear layers.

    y = x W^^T + bias,    W^ = diag(scale) P diag(col_scale) R^T,    P = L_u Cu[codes] + L_v Cv[codes]

P is held in 16 bits, and so is R; W^ is made anew in every pass and not kept for the next. The scales are those of the
bundle times parameters near one, so that one rate of learning suits all.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from kquant_cli.bases import BasisSpec, basis_for
from kquant_cli.encoded import EncodedMatrix, Frame

HELD = torch.bfloat16


class _Product(torch.autograd.Function):
    """y (..., rows) of x (..., columns)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, held: Tensor, scale: Tensor, col_scale: Tensor, right: Tensor) -> Tensor:
        weight = (scale.unsqueeze(1) * held * col_scale).to(x.dtype) @ right.T.to(x.dtype)
        ctx.save_for_backward(x, held, scale, col_scale, right, weight)
        return x @ weight.T

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, held, scale, col_scale, right, weight = ctx.saved_tensors
        of_y = grads[0].to(x.dtype)
        of_weight = of_y.reshape(-1, of_y.shape[-1]).T @ x.reshape(-1, x.shape[-1])
        product = (of_weight @ right.to(x.dtype)).float() * held
        return of_y @ weight, None, product @ col_scale, scale @ product, None


class TunedLinear(nn.Module):
    """An encoded matrix with a scale of rows and of columns, both to be tuned."""

    def __init__(self, encoded: EncodedMatrix, right: Tensor, bias: nn.Parameter | None) -> None:
        super().__init__()
        assert encoded.scale is not None and encoded.col_scale is not None
        device = right.device
        own = replace(encoded.layout, scale=None, col_scale=False, frame=_left(encoded.layout.frame))
        held = EncodedMatrix(own, encoded.codes.to(device), encoded.codebook.to(device)).decode()
        self.right, self.held, self.bias = right, held.to(HELD), bias
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
        """y (..., rows) of x (..., columns), in the dtype of autocast, else x's."""
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        y: Tensor = _Product.apply(x, self.held, self.scale, self.col_scale, self.right)
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


def right_basis(spec: BasisSpec | None, columns: int, device: torch.device) -> Tensor:
    """R (columns, columns) in 16 bits; the identity where there is none."""
    eye = torch.eye(columns, device=device)
    return (eye if spec is None else basis_for(spec).apply(eye).T).to(HELD)


def _left(frame: Frame) -> Frame:
    return Frame(left_u=frame.left_u, left_v=frame.left_v)
