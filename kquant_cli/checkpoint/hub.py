"""A model of the hub, brought into the local cache: the files that compressing needs, and no weights in other formats.

Without a network what the cache holds is used. huggingface_hub is imported here, when needed, and nowhere else.
"""

from __future__ import annotations

import errno
import glob
from pathlib import Path

from kquant_cli.checkpoint.config_files import read_config, read_index
from kquant_cli.checkpoint.file_roles import CONFIG, INDEX_ENDING, files_to_copy, find_weights, require_model
from kquant_cli.checkpoint.quantised import refuse_quantised_config
from kquant_cli.errors import KQuantError


def fetch(model: str, revision: str | None) -> Path:
    """The snapshot folder of `model` in the local cache, named by its commit hash; downloads what is missing.

    Raises KQuantError when the name or revision is unknown, the model is no use to kquant (told before its weights are
    downloaded), there is neither a network nor a copy in the cache, or no space is left for it.
    """
    from huggingface_hub import HfApi, constants  # noqa: PLC0415
    from huggingface_hub.errors import (  # noqa: PLC0415
        GatedRepoError,
        HFValidationError,
        HTTPError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        info = HfApi().model_info(model, revision=revision)
    except HFValidationError as error:
        raise KQuantError(f"{model!r} is neither a folder nor the name of a model on the hub (owner/name)") from error
    except RepositoryNotFoundError as error:
        raise KQuantError(
            f"{model!r} is neither a folder nor a model on the hub that you may see: check the spelling, or run "
            f"`hf auth login` if it is private or gated"
        ) from error
    except RevisionNotFoundError as error:
        raise KQuantError(f"{model!r} has no revision {revision!r}: give a branch, a tag or a commit hash") from error
    except (HTTPError, OSError) as error:
        return _cached(model, revision, error)
    try:
        return _download(model, revision, [file.rfilename for file in info.siblings or ()])
    except GatedRepoError as error:
        raise KQuantError(f"{model!r} is gated: agree to its terms on its page, then run `hf auth login`") from error
    except (HTTPError, OSError) as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise KQuantError(
                f"no space left while downloading {model!r} to {constants.HF_HUB_CACHE}: free some, or set "
                f"HF_HUB_CACHE to a folder elsewhere, and run the same command again"
            ) from error
        raise KQuantError(
            f"the download of {model!r} broke off ({_reason(error)}): run the same command again, and it goes on"
        ) from error


def fetch_beside(snapshot: Path, name: str) -> bool:
    """Bring the file `name` of the same model and commit into `snapshot`; whether it is there then."""
    from huggingface_hub import hf_hub_download  # noqa: PLC0415
    from huggingface_hub.errors import HTTPError  # noqa: PLC0415

    model = snapshot.parent.parent.name.removeprefix("models--").replace("--", "/")
    try:
        hf_hub_download(model, name, revision=snapshot.name, cache_dir=snapshot.parents[2])
    except (HTTPError, OSError, ValueError):  # no such file or network, no right to it
        return False
    return (snapshot / name).is_file()


def _download(model: str, revision: str | None, names: list[str]) -> Path:
    """Look at the small files first, so that a model that is refused costs no download.

    The revision goes on by its name, since only then the cache learns which commit it stands for, and works offline.
    """
    from huggingface_hub import hf_hub_download, snapshot_download  # noqa: PLC0415

    require_model(names, model)
    weights = find_weights(names, model)
    refuse_quantised_config(read_config(Path(hf_hub_download(model, CONFIG, revision=revision))), model)
    needed = {CONFIG, weights, *files_to_copy(names)}
    if weights.endswith(INDEX_ENDING):
        needed.update(read_index(Path(hf_hub_download(model, weights, revision=revision))).values())
    return Path(
        snapshot_download(model, revision=revision, allow_patterns=[glob.escape(name) for name in sorted(needed)])
    )


def _cached(model: str, revision: str | None, error: Exception) -> Path:
    """The newest snapshot that the cache holds of this revision."""
    from huggingface_hub import try_to_load_from_cache  # noqa: PLC0415

    config = try_to_load_from_cache(model, CONFIG, revision=revision)
    if not isinstance(config, str):
        what = model if revision is None else f"{model} at revision {revision}"
        raise KQuantError(
            f"{what} is neither a folder nor in the local cache, and the hub cannot be reached ({_reason(error)}): "
            f"give a folder, or run `hf download {model}` where there is a network"
        ) from error
    return Path(config).parent


def _reason(error: Exception) -> str:
    """The first sentence of the first line: what follows there is advice for callers of the library."""
    line = next(iter(str(error).splitlines()), "")
    return line.split(". ")[0].rstrip(".:") or type(error).__name__
