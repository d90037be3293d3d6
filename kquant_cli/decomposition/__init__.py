"""Kashin decomposition (arXiv 2404.09737): a weight as the sum of two parts with small entries, each in its own basis.

`matrix.py` and `vector.py` are the two forms; `step_rules.py` decides which part takes the next step; `residual.py` and
`elementwise.py` do the work of the matrix form; `factors.py` is what comes out.
"""

from kquant_cli.decomposition.factors import KashinFactors
from kquant_cli.decomposition.matrix import decompose_matrix
from kquant_cli.decomposition.step_rules import RULES
from kquant_cli.decomposition.vector import decompose_vector

__all__ = ["RULES", "KashinFactors", "decompose_matrix", "decompose_vector"]
