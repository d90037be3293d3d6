"""Data sets of the hub, through `datasets`: from its cache or the network, or a sentence that says what to get."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from kquant_cli.errors import KQuantError

# What `datasets` raises when the hub cannot be reached and the cache has no copy, or only one of another part.
HUB_ERRORS: Final = (OSError, ValueError, RuntimeError)
PROBE_SECONDS: Final = 10.0
TEXT: Final = "text"  # the column


def hub_rows(what: str, get: str, dataset: str, config: str | None = None, **options: Any) -> Any:
    """The rows of a data set; `options` such as split, revision and data_files go to `datasets.load_dataset`.

    Raises
    ------
    KQuantError
        It is not to be had: names `what` and says how to `get` it.
    """
    from datasets import load_dataset  # noqa: PLC0415 (a second to import, and only needed here)

    try:
        with cache_alone_if_unreachable(dataset):
            return load_dataset(dataset, *([] if config is None else [config]), **options)
    except HUB_ERRORS as error:
        place = dataset if config is None else f"{dataset}, {config}"
        raise KQuantError(f"{what} is neither in the cache nor available from the hub ({place}): {get}") from error


@contextmanager
def cache_alone_if_unreachable(dataset: str | None) -> Iterator[None]:
    """Let `datasets` use its cache at once where the hub does not answer: by itself it tries for half a minute.

    The hub is asked for `dataset`; None where nothing of it is wanted.
    """
    import datasets  # noqa: PLC0415
    from huggingface_hub import HfApi  # noqa: PLC0415
    from huggingface_hub.errors import HTTPError  # noqa: PLC0415

    before = datasets.config.HF_HUB_OFFLINE
    try:
        if dataset is not None:
            HfApi().dataset_info(dataset, timeout=PROBE_SECONDS)
    except (HTTPError, OSError):
        datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before


def data_set_text(name: str, letters: int) -> str:
    """The first rows of a data set's column "text", split "train", joined by blank lines, until there are `letters`.

    `name` is OWNER/NAME or OWNER/NAME:CONFIG of the hub, or a folder in the hub's layout; no more of it is fetched than
    is used.

    Raises
    ------
    KQuantError
        It is not to be had, or has no such rows.
    """
    get = "check the name and the network, or get some of its text and give that file"
    dataset, _, config = name.partition(":")
    try:
        if Path(name).is_dir():
            rows = _rows_of_folder(name)
        else:
            what = f"{name!r} is no file here, and as a data set it"
            rows = hub_rows(what, get, dataset, config or None, split="train", streaming=True)
        return "\n\n".join(_up_to(name, rows, letters))
    except HUB_ERRORS as error:
        raise KQuantError(f"{name} cannot be read as a data set with a split 'train' ({error}): {get}") from error


def _rows_of_folder(name: str) -> Iterable[Any]:
    from datasets import load_dataset  # noqa: PLC0415

    with cache_alone_if_unreachable(None):
        return load_dataset(name, split="train", streaming=True)


def _up_to(name: str, rows: Iterable[Any], letters: int) -> Iterator[str]:
    taken = 0
    for row in rows:
        if not isinstance(text := row.get(TEXT), str):
            raise KQuantError(
                f"the data set {name!r} has the columns {', '.join(sorted(row))}, expected one of text, {TEXT!r}: give "
                f"another, or a text file"
            )
        yield text
        if (taken := taken + len(text)) >= letters:
            return
