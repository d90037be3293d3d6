"""Which class of transformers a config asks for. The code that comes with a checkpoint is never run.

Importing this module imports transformers.
"""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
import transformers


def read_config(path: str | Path) -> transformers.PreTrainedConfig:
    """The config of the model folder `path`; raises one of `FAILURES` where transformers cannot read it."""
    return transformers.AutoConfig.from_pretrained(path, trust_remote_code=False)


def named_class(architectures: Iterable[Any] | None) -> type[transformers.PreTrainedModel] | None:
    """The first class of `architectures` (of a config.json) that transformers has; None where it has none."""
    found = (getattr(transformers, name, None) for name in architectures or () if isinstance(name, str))
    classes = (kind for kind in found if isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel))
    return next(classes, None)


def chosen_class(auto_class: str, config: transformers.PreTrainedConfig) -> type[transformers.PreTrainedModel]:
    """The class that transformers' `auto_class` chooses for `config`; ValueError where it has none for it.

    The auto classes say so only by making a model: here one on the meta device, without weights.
    """
    with torch.device("meta"):
        return type(getattr(transformers, auto_class).from_config(deepcopy(config), trust_remote_code=False))
