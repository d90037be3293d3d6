"""The annealed encoder, the default: a search of the overdetermined codebook {Cu[i] + Q Cv[j]} in place of rounding.

schedule.py         where the centroids lie and how the temperature falls: codebooks.json (scripts/search_codebooks.py)
annealing.py        the annealing, in torch or compiled; soft_assignment.py (and _triton.py) is its hot spot
hard_sweeps.py      how it ends, in torch or (_triton.py) two kernels
retries.py          rows that did not settle are annealed again
least_squares.py    the best codebook and scales for the codes
encode.py           a whole matrix
"""

from kquant_cli.encoders.annealed.encode import Annealed, AnnealedSettings

__all__ = ["Annealed", "AnnealedSettings"]
