"""The state of the matrix form: the residual in the coordinates of u and in those of v, and what v has taken of it.

    r = scale weight - u - left v right^T,    y = left^T r right

A step into u changes r, and y is transformed from it; a step into v changes y and v, and r is transformed from y: one
transform a step. And u is what the others leave of the weight, computed once at the end: so rounding errors cannot part
the carried residual from the true one, however many steps there are. The scale is a power of two with which the sums of
squares neither over- nor underflow.
"""

import torch
from torch import Tensor

from kquant_cli.bases import Basis
from kquant_cli.decomposition.elementwise import measure, take_step
from kquant_cli.decomposition.factors import unit_scale


class CarriedResidual:
    """Takes the steps; `norms` is (|r|_1, |y|_1, |r|_F^2) after the last, in float64 on the weight's device."""

    def __init__(self, weight: Tensor, left: Basis, right: Basis):
        self.weight, self.left, self.right = weight, left, right
        self.scale = unit_scale(torch.linalg.vector_norm(weight, torch.inf))
        self.v = torch.zeros_like(weight, memory_format=torch.contiguous_format)
        self.r, self.y = torch.empty_like(self.v), torch.empty_like(self.v)
        torch.mul(weight, self.scale, out=self.r)
        self.transform(self.r, self.y, back=False)
        self.sums = [measure(self.r), measure(self.y)]  # of r and of y

    @property
    def norms(self) -> Tensor:
        """See the class."""
        (l1_u, _, squared), (l1_v, _, _) = self.sums
        return torch.stack((l1_u, l1_v, squared))

    def step(self, into_v: bool, live: Tensor | None = None) -> Tensor:
        """Take a sign step and return its c; where `live` is 0, nothing changes and c is 0."""
        near, far = (self.y, self.r) if into_v else (self.r, self.y)
        l1, count, _ = self.sums[into_v]
        c = l1 / count.clamp(min=1)
        if live is not None:
            c = c * live
        self.sums[into_v] = take_step(c.to(near.dtype), near, self.v if into_v else None)
        if live is None:
            self.transform(near, far, back=into_v)
        else:
            image = torch.empty_like(far)
            self.transform(near, image, back=into_v)
            torch.where(live > 0, image, far, out=far)
        self.sums[not into_v] = measure(far)
        return c

    def finish(self) -> tuple[Tensor, Tensor, float]:
        """The parts u and v of the weight, and from them scale^2 |weight - u - left v right^T|_F^2."""
        taken = torch.empty_like(self.v)
        self.transform(self.v, taken, back=True)
        u = torch.mul(self.weight, self.scale, out=self.y).sub_(taken).sub_(self.r)
        rest = torch.mul(self.weight, self.scale, out=self.r).sub_(taken).sub_(u)
        return u.div_(self.scale), self.v.div_(self.scale), float(measure(rest)[2])

    def transform(self, source: Tensor, target: Tensor, back: bool) -> None:
        """target <- left^T source right, or back: target <- left source right^T."""
        across, down = (self.right.apply, self.left.apply) if back else (self.right.adjoint, self.left.adjoint)
        across(source, dim=1, out=target)
        down(target, dim=0, out=target)
