"""The state of the matrix form: the residual in the coordinates of u and in those of v, and the parts taken out of it.

Its matrices are four of the weight's size (r, y, u, v) and a fifth for the signs, which the transform overwrites. The
weight is scaled by a power of two, so that the sums of squares neither over- nor underflow.
"""

import torch
from torch import Tensor

from kquant_cli.bases import Basis
from kquant_cli.decomposition.blocks import norms, take_step, write_signs
from kquant_cli.decomposition.factors import unit_scale


class CarriedResidual:
    """r = scale weight - u - left v right^T and y = left^T r right, kept up to date step by step.

    `norms` is (|r|_1, |y|_1, |r|_F^2), a float64 tensor on the weight's device.
    """

    def __init__(self, weight: Tensor, left: Basis, right: Basis):
        self.weight, self.left, self.right = weight, left, right
        self.scale = unit_scale(torch.linalg.vector_norm(weight, torch.inf))
        self.u, self.v, self.r, self.y, self.image = (
            torch.zeros_like(weight, memory_format=torch.contiguous_format) for _ in range(5)
        )
        torch.mul(weight, self.scale, out=self.r)
        self.norms: Tensor
        self.refresh_y()

    def step(self, into_v: bool, live: Tensor) -> Tensor:
        """One sign step, of size 0 if `live` is 0; updates `norms` and returns its c."""
        near, far, part = (self.y, self.r, self.v) if into_v else (self.r, self.y, self.u)
        l1 = self.norms[1 if into_v else 0]
        count = write_signs(near, self.image)
        self._transform(self.image, back=into_v)
        c = live * l1 / count.clamp(min=1)
        l1_near, l1_far, squared = take_step(c.to(near.dtype), near, part, far, self.image)
        self.norms = torch.stack((l1_far, l1_near, squared) if into_v else (l1_near, l1_far, squared))
        return c

    def refresh_r(self) -> float:
        """Compute r from the weight, u and v, without what rounding has added to it; returns |r|_F^2."""
        self._transform(self.image.copy_(self.v), back=True)
        torch.mul(self.weight, self.scale, out=self.r)
        self.r.sub_(self.u).sub_(self.image)
        self.norms = norms(self.r, self.y)
        return float(self.norms[2])

    def refresh_y(self) -> None:
        """Compute y from r."""
        self._transform(self.y.copy_(self.r), back=False)
        self.norms = norms(self.r, self.y)

    def _transform(self, matrix: Tensor, back: bool) -> None:
        """In place: matrix <- left^T matrix right, or back: matrix <- left matrix right^T."""
        across, down = (self.right.apply, self.left.apply) if back else (self.right.adjoint, self.left.adjoint)
        across(matrix, dim=1, out=matrix)
        down(matrix, dim=0, out=matrix)
