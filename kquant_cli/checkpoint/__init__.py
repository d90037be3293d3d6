"""Where the tensors of a Hugging Face checkpoint are (hub or folder), and which are encoded; one is read at a time.

checkpoint = open_checkpoint("facebook/opt-1.3b")
for matrix in select_matrices(checkpoint, include=(), exclude=()).matrices:
    weight = checkpoint.read(matrix.tensor)

Names and shapes decide, not model classes: nothing here imports transformers.
"""

from kquant_cli.checkpoint.checkpoint import Checkpoint, open_checkpoint
from kquant_cli.checkpoint.fingerprint import content_hash
from kquant_cli.checkpoint.locate import checkpoints_within, local_folder
from kquant_cli.checkpoint.selection import Matrix, Selection, matches, select_matrices
from kquant_cli.checkpoint.stored_tensor import TensorLike
from kquant_cli.checkpoint.token_matrices import token_matrices

__all__ = [
    "Checkpoint",
    "Matrix",
    "Selection",
    "TensorLike",
    "checkpoints_within",
    "content_hash",
    "local_folder",
    "matches",
    "open_checkpoint",
    "select_matrices",
    "token_matrices",
]
