"""An output head that is tied to an encoded embedding: both have the same parameters, as transformers ties dense ones.

transformers ties by names, `{"lm_head.weight": "model.embed_tokens.weight"}`, as it loads, saves and on
`tie_weights()`. For encoded matrices the names become those of the tensors that stand for a weight
(`lm_head.weight_codes`, ...), in the model and in the parts that are models themselves.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from transformers import PreTrainedModel

from kquant_cli.encoded import Layout
from kquant_cli.errors import KQuantError

WEIGHT = ".weight"


def tied_modules(model: Any, encoded: Collection[str], stored: Collection[str]) -> dict[str, str]:
    """By its name each module whose weight transformers ties to that of an `encoded` module, which is the value.

    `stored`: the model's parameters that tensors on disk become; a module with a weight of its own is not tied.
    """
    found = {}
    for _, target, source in _tied(model):
        for mine, other in ((target, source), (source, target)):
            module, owner = mine.removesuffix(WEIGHT), other.removesuffix(WEIGHT)
            if mine.endswith(WEIGHT) and owner in encoded and module not in encoded and mine not in stored:
                found[module] = owner
    return found


def retie(model: Any, layouts: Mapping[str, Layout], tied: Mapping[str, str]) -> None:
    """Have transformers tie the tensors of encoded modules: `layouts` by module; `tied`, as of `tied_modules`.

    A weight that is encoded is tied to none that is dense.
    """
    keys: dict[str, dict[str, str]] = {prefix: {} for prefix, _ in _parts(model)}
    changed = set()
    for prefix, target, source in _tied(model):
        one, other = target.removesuffix(WEIGHT), source.removesuffix(WEIGHT)
        if not (target.endswith(WEIGHT) and {one, other} & {*layouts, *tied}):
            keys[prefix][target] = source
            continue
        changed.add(prefix)
        if tied.get(other) == one:
            one, other = other, one
        layout = layouts.get(other)
        if layout is not None and (layouts.get(one) == layout or tied.get(one) == other):
            keys[prefix] |= {f"{one}.{name}": f"{other}.{name}" for name in layout.tensor_shapes()}
    for prefix, part in _parts(model):
        if prefix in changed:
            part._tied_weights_keys = {t.removeprefix(prefix): s.removeprefix(prefix) for t, s in keys[prefix].items()}
    for _, part in _parts(model):
        part.all_tied_weights_keys = part.get_expanded_tied_weights_keys(all_submodels=True)


def tie_as_ever(model: Any) -> None:
    """Undo `retie`, and the refusal to resize: everything is dense again."""
    for _, part in _parts(model):
        for name in ("_tied_weights_keys", "resize_token_embeddings"):
            part.__dict__.pop(name, None)
    for _, part in _parts(model):
        part.all_tied_weights_keys = part.get_expanded_tied_weights_keys(all_submodels=True)


class FixedVocabulary:
    """Takes the place of a model's `resize_token_embeddings`: codes have no rows to add, and none to lose."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def __call__(self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, *_: Any) -> Any:
        """The embedding, where nothing is asked for."""
        embedding = self.model.get_input_embeddings()
        if pad_to_multiple_of is None and new_num_tokens in (None, len(embedding.weight)):
            return embedding
        raise KQuantError(
            "the vocabulary of a bundle with an encoded embedding or head cannot be resized: give the model "
            "`dequantize()` first, or compress one that has the tokens"
        )


def _parts(model: Any) -> Iterator[tuple[str, Any]]:
    """The model and the models in it, with the prefix of their names."""
    for name, part in model.named_modules():
        if isinstance(part, PreTrainedModel):
            yield f"{name}." if name else "", part


def _tied(model: Any) -> Iterator[tuple[str, str, str]]:
    """The prefix of a part, and the names in the model of two parameters that it ties: target and source."""
    for prefix, part in _parts(model):
        for target, source in part.get_expanded_tied_weights_keys(all_submodels=False).items():
            yield prefix, prefix + target, prefix + source
