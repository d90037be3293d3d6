"""The annealed encoder, the default: a search of the overdetermined codebook {Cu[i] + Q Cv[j]} in place of rounding.

schedule.py   where the centroids lie and how the temperature falls, from codebooks.json (scripts/search_codebooks.py)
sweeps.py     the annealing, in torch or compiled; soft.py, soft_triton.py: its hot spot
refit.py      least squares for codebook and scales
encode.py     a whole matrix
"""

from kquant_cli.encoders.annealed.encode import annealed_layout, encode_annealed
from kquant_cli.encoders.annealed.schedule import searched_errors

__all__ = ["annealed_layout", "encode_annealed", "searched_errors"]
