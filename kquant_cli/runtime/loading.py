"""Loads what the user names, a hub id, a model folder or a bundle, as a transformers model that is safe to measure.

transformers fills tensors that a checkpoint lacks with random numbers and only warns; here that is an error.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

import torch
import transformers
from safetensors import SafetensorError

from kquant_cli import bundle as bundles
from kquant_cli.errors import KQuantError
from kquant_cli.placement import resolve_device, resolve_dtype
from kquant_cli.runtime.dense_twin import load_dense_twin

T = TypeVar("T")

# What transformers, safetensors and the hub raise for a checkpoint that is absent, damaged or of an unknown kind.
LOADING_ERRORS: Final = (OSError, ValueError, RuntimeError, ImportError, SafetensorError)


@dataclass(frozen=True)
class LoadedModel:
    """A transformers model in evaluation mode, and where it came from."""

    model: transformers.PreTrainedModel
    kind: Literal["dense", "bundle"]
    path: str
    revision: str | None = None

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the model's floating point parameters."""
        return self.model.dtype

    @property
    def device(self) -> torch.device:
        """Where the model's inputs belong."""
        return self.model.device

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer beside the weights, read when first asked for; KQuantError where there is none."""
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(self.path, revision=self.revision)
        except LOADING_ERRORS as error:
            raise KQuantError(self._no_tokenizer()) from error
        # Without files, some architectures give a tokenizer that knows special tokens alone.
        if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
            raise KQuantError(self._no_tokenizer())
        return tokenizer

    def _no_tokenizer(self) -> str:
        return f"{self.path} has no tokenizer that transformers can read: put its tokenizer.json beside the weights"


def load_model(
    path_or_id: str | Path,
    *,
    auto_class: str = "AutoModelForCausalLM",
    device: str | torch.device = "auto",
    dtype: str | torch.dtype | None = None,
    revision: str | None = None,
) -> LoadedModel:
    """Load a dense model (hub id or folder) or a bundle, decoded into its dense twin, ready to evaluate.

    `auto_class` names transformers' auto class that gives the model its head; `device` is auto (the GPU where there is
    one), cpu or cuda; `dtype` is a torch dtype or its name, where auto or None mean float32 on the CPU and the
    checkpoint's own on a GPU; `revision` is a branch, tag or commit of a model on the hub.

    Raises
    ------
    KQuantError
        There is nothing to load, the checkpoint is damaged, or it has not the head that `auto_class` means.
    """
    path = str(path_or_id)
    placed = resolve_device(device)
    resolved = resolve_dtype(dtype, placed)
    if bundles.is_bundle(Path(path)):
        _refuse_revision(path, revision)
        bundle = bundles.open_bundle(Path(path))
        model, missing = _or_sentence(lambda: load_dense_twin(bundle, auto_class, placed, resolved), f"bundle {path}")
        kind: Literal["dense", "bundle"] = "bundle"
    else:
        _require_model(path, revision)
        what = path if Path(path).exists() else f"{path} (no folder here, so taken for a model on the hub)"
        model, missing = _or_sentence(lambda: _load_dense(path, auto_class, placed, resolved, revision), what)
        kind = "dense"
    _require_complete(path, auto_class, model, missing)
    return LoadedModel(model.eval(), kind, path, revision)


def _load_dense(
    path: str, auto_class: str, device: torch.device, dtype: torch.dtype | str, revision: str | None
) -> tuple[transformers.PreTrainedModel, Collection[str]]:
    model, info = getattr(transformers, auto_class).from_pretrained(
        path,
        dtype=dtype,
        revision=revision,
        device_map=None if device.type == "cpu" else {"": device},
        output_loading_info=True,
    )
    return model, info["missing_keys"]


def _refuse_revision(path: str, revision: str | None) -> None:
    if revision is not None:
        raise KQuantError(f"--revision {revision} is for models on the hub, and {path} is a folder: leave it out")


def _require_model(path: str, revision: str | None) -> None:
    folder = Path(path)
    if folder.exists():
        _refuse_revision(path, revision)
        if not (folder / "config.json").is_file():
            raise KQuantError(f"{path} is not a model folder: it has no config.json")
    elif path.count("/") > 1 or path.startswith((".", "/", "~")):
        raise KQuantError(f"there is no folder {path}: give a model folder, a bundle or a model id on the hub")


def _require_complete(
    path: str, auto_class: str, model: transformers.PreTrainedModel, missing: Collection[str]
) -> None:
    architectures = getattr(model.config, "architectures", None) or []
    if auto_class == "AutoModelForCausalLM" and (
        getattr(model.config, "is_encoder_decoder", False)
        or any(name.endswith("ForMaskedLM") for name in architectures)
    ):
        raise KQuantError(
            f"{path} ({', '.join(architectures)}) is no causal language model, which this needs: "
            "it does not predict each token from those before it"
        )
    if missing:
        names = sorted(missing)
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        raise KQuantError(
            f"{path} lacks tensors that {type(model).__name__} needs ({shown}): "
            "it is damaged, or a model with another head (its config.json says: "
            f"{', '.join(architectures) or 'no architecture'})"
        )


def _or_sentence(load: Callable[[], T], what: str) -> T:
    """What `load` returns; its own failure as one sentence about `what`."""
    try:
        return load()
    except LOADING_ERRORS as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise KQuantError(f"{what} cannot be loaded: {reason.rstrip('.')}") from error
