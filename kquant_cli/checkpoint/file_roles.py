"""The roles of a model folder's files, told from their names alone: so they are the same for a folder and on the hub.

config.json                        read, and written anew for the bundle
the weights, or an index of them   `find_weights`: where transformers looks, in its order, then one file of any name
weights of other kinds             left behind: other formats, adapters, optimiser states, subfolders such as onnx/
everything else                    `files_to_copy`: tokenizer, chat template, generation config, licence, pictures
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from kquant_cli.errors import KQuantError

CONFIG = "config.json"
ADAPTER_CONFIG = "adapter_config.json"
INDEX_ENDING = ".index.json"
OTHER_ROLES = ("adapter_*", "consolidated*", "optimizer*", "training_args*", "scheduler*")
WEIGHTS = (
    *("*.safetensors", "*.safetensors.index.json", "*.bin.index.json", "*model*.bin", "weight*.bin"),
    *("optimizer*.bin", "scheduler*.bin", "training_args.bin", "*.pt", "*.pth", "*.ckpt*", "*.h5", "*.msgpack", "*.ot"),
    *("*.onnx*", "*.gguf", "*.ggml", "*.tflite", "*.npz", "*.pb", "variables.data-*", "*.mlmodel", "*.nemo"),
)
SHARD = re.compile(r"-(\d+)-of-(\d+)\.")


def list_files(folder: Path) -> tuple[str, ...]:
    """The files below `folder` as relative posix paths, sorted; hidden folders and bundles within it are passed over.

    Links to files count as files, as the hub's cache needs. Raises KQuantError for a link that leads nowhere.
    """
    found = []
    for parent, folders, names in os.walk(folder):
        here = Path(parent)
        folders[:] = [
            name for name in folders if not name.startswith(".") and not (here / name / "kquant.json").exists()
        ]
        for name in names:
            path = here / name
            if not path.exists():
                raise KQuantError(
                    f"{path} is a link that leads nowhere: download the checkpoint again, or remove the link"
                )
            if path.is_file():
                found.append(path.relative_to(folder).as_posix())
    return tuple(sorted(found))


def find_weights(names: Collection[str], where: str) -> str:
    """The file of `names` that holds the weights, or the index of those that do; KQuantError when there is none."""
    files = [name for name in names if "/" not in name and not _matches(name, OTHER_ROLES)]
    safe = sorted(name for name in files if name.endswith(".safetensors"))
    whole = [name for name in safe if _shards(name) == 1]
    indexes = sorted(name for name in files if name.endswith(".safetensors" + INDEX_ENDING))
    usual = ("model.safetensors", "model.safetensors.index.json")
    pickled = ("pytorch_model.bin", "pytorch_model.bin.index.json")
    single = [choice[0] for choice in (indexes, whole) if len(choice) == 1]
    for name in (*(name for name in usual if name in files), *single, *(name for name in pickled if name in files)):
        return name
    if safe:
        raise KQuantError(
            f"{where} holds {len(safe)} safetensors files ({safe[0]}, ...) and no index that joins them: expected "
            f"model.safetensors or model.safetensors.index.json; download it again"
        )
    others = sorted(name for name in names if _matches(name, WEIGHTS))
    found = f" (it holds {others[0]}, which kquant does not read)" if others else ""
    raise KQuantError(
        f"{where} holds no weights{found}: expected model.safetensors, an index with shards, or pytorch_model.bin"
    )


def require_model(names: Collection[str], where: str) -> None:
    """Raises KQuantError when `names` are not those of a model's folder: an adapter's, or without a config.json."""
    if ADAPTER_CONFIG in names:
        raise KQuantError(
            f"{where} is an adapter (it holds {ADAPTER_CONFIG}), not a model: merge it into its base model, save that, "
            f"and compress the result"
        )
    if CONFIG not in names:
        raise KQuantError(f"{where} is not a model folder: it holds no {CONFIG}")


def files_to_copy(names: Iterable[str]) -> tuple[str, ...]:
    """Those of `names` that belong to the model but are neither weights in any format nor its config.json."""
    return tuple(name for name in names if name != CONFIG and not _hidden(name) and not _matches(name, WEIGHTS))


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(PurePosixPath(name).name.lower(), pattern) for pattern in patterns)


def _hidden(name: str) -> bool:
    return any(part.startswith(".") for part in PurePosixPath(name).parts[:-1])


def _shards(name: str) -> int:
    """How many files belong together by the name of one: 3 for model-00001-of-00003.safetensors."""
    found = SHARD.search(name)
    return int(found[2]) if found else 1
