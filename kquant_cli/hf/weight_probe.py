"""Which weights a model computes with past their layers' own forward, seen as it runs, without numbers, on meta.

Only what the model's code might use so (weight_uses.py) is watched: its module gives outputs of the right shape without
looking at its weight, so that whatever is asked of the weight is asked by others. A module that is never reached, since
the model cannot be run like that (images as input, decisions that depend on numbers), stays under suspicion.

Importing this module imports transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from transformers.pytorch_utils import Conv1D

from kquant_cli.hf.failures import FAILURES
from kquant_cli.hf.model_class import chosen_class, named_class, read_config
from kquant_cli.hf.parameter_names import parameter_lookup
from kquant_cli.hf.quiet import quiet
from kquant_cli.hf.weight_uses import WeightUse

WEIGHT: Final = ".weight"
TOKENS: Final = 4
DESCRIPTIONS: Final = frozenset(  # names of functions
    ("__get__", "size", "dim", "numel", "stride", "element_size", "is_contiguous", "is_floating_point", "__len__")
)
VALUES: Final = frozenset((Tensor.data.__get__, Tensor.T.__get__, Tensor.mT.__get__, Tensor.H.__get__))  # type: ignore[attr-defined]


def used_past_forward(path: Path, names: Iterable[str], uses: Collection[WeightUse]) -> dict[str, str]:
    """Those tensors of `names` (on disk, in the folder `path`) with whose values the model computes by itself.

    The value is the class that does. None are found where transformers cannot make the model: then none can run.
    """
    with quiet():
        try:
            model = _skeleton(path)
            find = parameter_lookup(model)
            parameters = {name: found.name for name in names if (found := find(name)) is not None and found.whole}
        except FAILURES:
            return {}
        owners = {name: _owner(model, parameter, uses) for name, parameter in parameters.items()}
        watched = {
            name: Watched.instead(model.get_submodule(parameters[name].removesuffix(WEIGHT)))
            for name, owner in owners.items()
            if owner
        }
        runs = [_runs(model, cache) for cache in (False, True)]  # both: they take different ways
    return {
        name: owners[name] or ""
        for name, weight in watched.items()
        if weight.touched or not (all(runs) and weight.called)
    }


class Watched(Tensor):
    """A weight on meta that knows whether anything was computed with it."""

    touched: bool
    called: bool  # whether its module was

    @classmethod
    def instead(cls, module: nn.Module) -> Watched:
        """Take the place of the module's weight, and of its forward; a module of an unknown kind keeps its own."""
        before = module.__dict__.get("weight")
        if isinstance(before, Watched):  # two names on disk of one parameter
            return before
        old: Any = module._parameters.pop("weight")
        made = torch.empty_like(old, device="meta").detach().as_subclass(cls)
        made.touched = made.called = False
        module.__dict__["weight"] = made
        if (width := _width(module)) is not None:
            module.forward = _stub(made, module, width)
        return made

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Remember that it was computed with, and have the result be an ordinary tensor."""
        if func in VALUES or getattr(func, "__name__", "") not in DESCRIPTIONS:
            for value in tree_leaves((args, kwargs)):
                if isinstance(value, Watched):
                    value.__dict__["touched"] = True
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))


def _skeleton(path: Path) -> Any:
    """The model of the folder `path` on meta, in evaluation mode."""
    config = read_config(path)
    kind: Any = named_class(config.architectures) or chosen_class("AutoModel", config)
    with torch.device("meta"):
        return kind._from_config(deepcopy(config)).eval()


def _owner(model: Any, parameter: str, uses: Collection[WeightUse]) -> str | None:
    """The class that may compute with the weight `parameter`; None where no use fits it."""
    module, _, name = parameter.removesuffix(WEIGHT).rpartition(".")
    classes = {kind.__name__ for kind in type(model.get_submodule(module)).__mro__}
    for use in uses:
        if use.name == name and (use.owner is None or use.owner in classes):
            return use.owner or type(model).__name__
    return None


def _width(module: nn.Module) -> int | None:
    """The size of the module's outputs."""
    if isinstance(module, nn.Linear):
        return module.out_features
    if isinstance(module, nn.Embedding):
        return module.embedding_dim
    return module.nf if isinstance(module, Conv1D) else None


def _stub(weight: Watched, module: nn.Module, width: int) -> Callable[[Tensor], Tensor]:
    dtype = weight.dtype

    def forward(x: Tensor) -> Tensor:
        weight.__dict__["called"] = True
        sizes = x.shape if isinstance(module, nn.Embedding) else x.shape[:-1]
        return torch.empty(*sizes, width, dtype=dtype, device="meta")

    return forward


def _runs(model: Any, cache: bool) -> bool:
    """Whether the model runs on meta; `cache`: and keeps keys, values and states."""
    ids = torch.zeros(1, TOKENS, dtype=torch.int64, device="meta")
    inputs: dict[str, Any] = {"input_ids": ids}
    if getattr(model.config, "is_encoder_decoder", False):
        inputs["decoder_input_ids"] = ids
    if model.main_input_name != "input_ids":
        return False
    with suppress(*FAILURES), torch.no_grad(), torch.device("meta"):
        model(**inputs, **({"use_cache": cache} if hasattr(model.config, "use_cache") else {}))
        return True
    return False
