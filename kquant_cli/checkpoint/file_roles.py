"""The roles of a model folder's files, told from their names alone: so they are the same for a folder and on the hub.

config.json                        read, and written anew for the bundle
the weights, or an index of them   `find_weights`: where transformers looks, in its order, then one file of any name
weights of other kinds             left behind: other formats, adapters, optimiser states, subfolders such as onnx/
known companions                   `files_to_copy`: tokenizer, chat template, generation config, licence, pictures, the
                                   code that config.json names, and the modules of sentence-transformers with weights
everything else                    left behind and named (`unknown_files`), unless a pattern of the user's asks for it
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
COMPANIONS = (  # of a file's name in lower case, in any folder
    *(
        "tokenizer*.json",
        "tokenizer*.model*",
        "*.tiktoken",
        "tekken.json",
        "added_tokens.json",
        "special_tokens_map.json",
    ),
    *(
        "vocab.*",
        "*_vocab.json",
        "vocab-*.json",
        "merges.txt",
        "encoder.json",
        "emoji.json",
        "normalizer.json",
        "dict.txt",
    ),
    *("spiece.model", "*sentencepiece*.model", "*.bpe.model", "spm*.model", "*.spm", "bpe.codes", "target_vocab.*"),
    *("chat_template*", "*.jinja", "generation_config*.json", "preprocessor_config.json", "processor_config.json"),
    *("video_preprocessor_config.json", "image_processor_config.json", "feature_extractor_config.json"),
    *("modules.json", "config_sentence_transformers.json", "sentence_*_config.json", "configuration.json"),
    *("readme*", "licen[cs]e*", "copying*", "notice*", "*notices*", "use_policy*", "citation*", "*.md"),
    *("*.png", "*.jpg", "*.jpeg", "*.gif", "*.svg", "*.webp"),
    *("modeling_*.py", "configuration_*.py", "tokenization_*.py", "*processing_*.py", "feature_extraction_*.py"),
)
IN_MODULES = ("*.json", "*.txt", "model.safetensors", "pytorch_model.bin")  # and there
MODULE = re.compile(r"\d+_\w+/[^/]+")  # 2_Dense/model.safetensors, where modules.json lists the modules
UNSAID = (".gitattributes", ".gitignore", ".gitkeep", ".ds_store", "params.json")  # left behind without a word
MOST_BYTES = 1_000_000_000  # of a companion that no pattern asks for
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


def files_to_copy(names: Collection[str], patterns: Iterable[str] = (), *, with_code: bool = False) -> tuple[str, ...]:
    """Those of `names` that belong to the model but are neither its weights nor its config.json.

    `patterns` of the user's, on the name or the whole path, add to the known ones, but for weights that lie beside the
    model's own, which would be taken for these. `with_code`: the config names code that comes with the model, of which
    any other may be a part.
    """
    modules = "modules.json" in names
    return tuple(
        name
        for name in names
        if name != CONFIG
        and not _hidden(name)
        and (
            _is_companion(name, modules, names, with_code) or (is_asked_for(name, patterns) and not _own_weights(name))
        )
    )


def unknown_files(names: Iterable[str], copied: Collection[str]) -> tuple[str, ...]:
    """Those of `names` that have no role here and are not `copied`: what the user is told of."""
    roles = (*WEIGHTS, *UNSAID)
    others = (name for name in names if name not in copied and name not in (CONFIG, ADAPTER_CONFIG))
    return tuple(name for name in others if not _hidden(name) and not _matches(name, roles))


def is_asked_for(name: str, patterns: Iterable[str]) -> bool:
    """Whether one of the user's patterns fits the file's name or its whole path."""
    return any(fnmatchcase(name, pattern) or fnmatchcase(PurePosixPath(name).name, pattern) for pattern in patterns)


def _is_companion(name: str, modules: bool, names: Collection[str], with_code: bool) -> bool:
    if MODULE.fullmatch(name) and _matches(name, IN_MODULES) and (modules or name.endswith(".json")):
        return not name.endswith(".bin") or str(PurePosixPath(name).with_name("model.safetensors")) not in names
    if _matches(name, WEIGHTS):
        return False
    return _matches(name, COMPANIONS) or (with_code and "/" not in name and name.endswith(".py"))


def _own_weights(name: str) -> bool:
    return "/" not in name and _matches(name, WEIGHTS)


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(PurePosixPath(name).name.lower(), pattern) for pattern in patterns)


def _hidden(name: str) -> bool:
    return any(part.startswith(".") for part in PurePosixPath(name).parts[:-1])


def _shards(name: str) -> int:
    """How many files belong together by the name of one: 3 for model-00001-of-00003.safetensors."""
    found = SHARD.search(name)
    return int(found[2]) if found else 1
