"""Data sets of the hub, through `datasets`: from its cache or the network, or a sentence that says what to get."""

from typing import Any

from kquant_cli.errors import KQuantError

# What `datasets` raises when the hub cannot be reached and the cache has no copy, or only one of another part.
HUB_ERRORS = (OSError, ValueError, RuntimeError)


def hub_rows(what: str, get: str, dataset: str, config: str | None = None, **options: Any) -> Any:
    """The rows of a data set; `options` such as split, revision and data_files go to `datasets.load_dataset`.

    Raises
    ------
    KQuantError
        It is not to be had: names `what` and says how to `get` it.
    """
    from datasets import load_dataset  # noqa: PLC0415 (a second to import, and only needed here)

    try:
        return load_dataset(dataset, *([] if config is None else [config]), **options)
    except HUB_ERRORS as error:
        place = dataset if config is None else f"{dataset}, {config}"
        raise KQuantError(f"{what} is neither in the cache nor to be had from the hub ({place}): {get}") from error
