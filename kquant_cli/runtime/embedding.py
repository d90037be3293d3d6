"""A token embedding that stays encoded: of a matrix (tokens, hidden) just the rows that are asked for are decoded.

    row_i = factor scale_i (Cu[codes_i] S R_u^T + Cv[codes_i] S R_v^T) / d        (encoded.py)

`factor` is that of the embeddings that transformers' models multiply (Gemma's sqrt(hidden)), else 1. A head that is
tied to it is a `KashinLinear` with the same parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kquant_cli.encoded import Layout
from kquant_cli.runtime.encoded_weight import EncodedWeight
from kquant_cli.runtime.operators import compiled_rows, decoded_rows

SCALED = "ScaledWordEmbedding"  # how transformers ends the names of those classes, whatever the model


def refusal(module: nn.Embedding, layout: Layout) -> str | None:
    """Why rows of the matrix cannot be looked up in place of the module's, as the end of a sentence; None: they can."""
    if type(module) is not nn.Embedding and not type(module).__name__.endswith(SCALED):
        return f"is the weight of a module {type(module).__name__}, whose rows are not only looked up"
    if module.max_norm is not None:
        return "is the weight of an Embedding that renorms its rows"
    if layout.frame.left_u is not None or layout.frame.left_v is not None:
        return "is an embedding, and bases on its left side mix its rows"
    return None


class KashinEmbedding(EncodedWeight):
    """An encoded matrix in place of `nn.Embedding(num_embeddings, embedding_dim)`, or of transformers' scaled ones."""

    like: Tensor  # nothing, of the dtype of rows: `.to(dtype)` changes it as it changes what is dense

    def __init__(
        self,
        layout: Layout,
        replaced: nn.Embedding | None = None,
        dtypes: Mapping[str, torch.dtype] | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(layout, replaced, dtypes, device)
        self.num_embeddings, self.embedding_dim = layout.shape
        self.padding_idx = None if replaced is None else replaced.padding_idx
        self.replaced = [] if replaced is None else [replaced]  # in a list, so that it is no part of the model
        self.factor = _factor(replaced)
        dtype = getattr(torch, layout.dtype) if replaced is None else replaced.weight.dtype
        self.register_buffer("like", torch.empty(0, dtype=dtype, device=device), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        """Rows (..., embedding_dim) of ids (...)."""
        matrix = (
            self.weight_codes,
            self.own("weight_codebook"),
            self.own("weight_scale"),
            self.own("weight_col_scale"),
        )
        look_up = compiled_rows if torch.compiler.is_compiling() else decoded_rows
        rows = look_up(ids.reshape(-1), *matrix, self.shared_channel_scale(), self.like, self.layout_key)
        if self.factor is not None:
            rows = rows * torch.tensor(self.factor, dtype=rows.dtype, device=rows.device)
        return rows.view(*ids.shape, self.embedding_dim)

    def dense(self, dtype: torch.dtype | None) -> nn.Embedding:
        """The module that this one replaced, with the decoded weight in `dtype` or the source's."""
        weight = self.encoded().decode(dtype or getattr(torch, self.layout.dtype))
        with torch.device("meta"):
            made: Any = nn.Embedding(self.num_embeddings, self.embedding_dim, self.padding_idx)
        if self.replaced:
            made.__class__ = type(self.replaced[0])
            made.__dict__ |= {name: value for name, value in vars(self.replaced[0]).items() if "embed_scale" in name}
            if "embed_scale" in self.replaced[0]._buffers:
                made.embed_scale = nn.Buffer(torch.tensor(self.factor, device=weight.device), persistent=False)
        made.weight = nn.Parameter(weight, requires_grad=False)
        return made

    @property
    def described_dtype(self) -> torch.dtype:
        """That of the rows."""
        return self.like.dtype

    def extra_repr(self) -> str:
        """For print(model)."""
        return f"{self.num_embeddings}, {self.embedding_dim}, levels={self.layout.levels}"


def _factor(module: Any) -> float | None:
    """What a scaled embedding multiplies its rows with."""
    if module is None or type(module) is nn.Embedding:
        return None
    return float(getattr(module, "scalar_embed_scale", None) or module.embed_scale)
