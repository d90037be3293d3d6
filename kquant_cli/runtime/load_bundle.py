"""`kquant_cli.load`: a bundle as a transformers model that runs from its codes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import torch
import transformers

from kquant_cli.bundle import is_bundle
from kquant_cli.checkpoint import local_folder
from kquant_cli.devices import resolve_dtype
from kquant_cli.errors import KQuantError
from kquant_cli.runtime.folder_check import verify_folder
from kquant_cli.runtime.loading import load_from_codes
from kquant_cli.suggestions import near

TASKS: Final = {
    "causal-lm": "AutoModelForCausalLM",
    "sequence-classification": "AutoModelForSequenceClassification",
    "encoder": "AutoModel",
}


def load(
    bundle: str | Path,
    task: str = "causal-lm",
    *,
    device_map: Any = None,
    dtype: str | torch.dtype | None = None,
    revision: str | None = None,
    verify: bool = True,
) -> transformers.PreTrainedModel:
    """Load a bundle (folder, or id on the hub) whose encoded layers compute from the codes, in evaluation mode.

    `task` is causal-lm, sequence-classification or encoder. `device_map` is transformers' (None: the first GPU where
    there is one, else the CPU; "auto" spreads a model that is larger than one). `dtype` is that of what is not encoded,
    and of the outputs (None or "auto": the source's own). `verify` compares a folder's files with their SHA-256;
    without it names, sizes, index, shapes and types are compared all the same.

    Raises
    ------
    KQuantError
        It is no bundle, is damaged or of another format, has not the head that `task` means, or cannot run from codes
        in this architecture (CannotRunFromCodesError).
    """
    if task not in TASKS:
        meant = near(task, TASKS) or list(TASKS)
        raise KQuantError(f"unknown task {task!r}: did you mean {' or '.join(map(repr, meant))}?")
    resolved = "auto" if dtype is None or dtype == "auto" else resolve_dtype(dtype, torch.device("cpu"))
    folder = local_folder(bundle, revision)
    if folder is not None:
        if not is_bundle(folder):
            raise KQuantError(f"{folder}: is not a kquant bundle; give the folder that `kquant compress` wrote")
        verify_folder(folder, checksums=verify)
    if device_map is None and torch.cuda.is_available():
        device_map = {"": 0}
    return load_from_codes(str(folder or bundle), TASKS[task], device_map, resolved, revision)
