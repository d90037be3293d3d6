"""Which parameter of a model a tensor on disk becomes: as transformers itself maps the names.

transformers renames what a checkpoint holds (OPT's `decoder.`, prefixes of BERT and GPT-2, old names of new models) and
converts some of it (experts fused into one parameter, projections put together). The functions that it loads with are
asked here; neither tensors nor files are needed, and the model may be on the meta device.

Importing this module imports transformers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key


@dataclass(frozen=True)
class LoadedParameter:
    """The parameter (or buffer) `name` of a model, as a tensor on disk becomes it.

    `whole`: it is that tensor, unchanged but for its dtype; else transformers converts, or fuses it with others.
    """

    name: str
    whole: bool


def parameter_lookup(model: Any) -> Callable[[str], LoadedParameter | None]:
    """A function from a tensor's name on disk to the parameter of `model` that it becomes; None where there is none."""
    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    state: dict[str, Any] = model.state_dict()

    def find(name: str) -> LoadedParameter | None:
        target, converted = rename_source_key(name, renamings, converters, model.base_model_prefix, state)
        if target not in state:  # the loader's own second try
            target, _ = rename_source_key(name, [], [], model.base_model_prefix, state)
            converted = None
        return LoadedParameter(target, whole=converted is None) if target in state else None

    return find
