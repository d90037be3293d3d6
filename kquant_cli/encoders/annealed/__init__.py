"""The annealed encoder, the default: a search of the overdetermined codebook {Cu[i] + Q Cv[j]} in place of rounding.

schedule.py         where the centroids lie and how the temperature falls: codebooks.json (scripts/search_codebooks.py)
sweeps.py           what drives the annealing
annealing.py        the annealing, in torch, compiled or by kernels (anneal_triton.py)
soft_assignment.py  its hot spot, and hard_sweeps.py, how it ends: each in torch and as kernels (_triton.py)
retries.py          rows that did not settle are annealed again
least_squares.py    the best codebook and scales for the codes
encode.py           a whole matrix
"""

from kquant_cli.encoders.annealed.encode import Annealed, AnnealedSettings

__all__ = ["Annealed", "AnnealedSettings"]
