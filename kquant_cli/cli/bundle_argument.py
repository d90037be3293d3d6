"""The bundle that a command takes where none is named."""

from pathlib import Path

from kquant_cli.cli.console import log


def bundle_or_newest(named: str | None, doing: str) -> str:
    """The bundle that was named, or the newest under bundles/, which is then said on standard error."""
    from kquant_cli.bundle import newest_bundle

    if named is not None:
        return named
    path = newest_bundle(Path("bundles"))
    log.print(f"{doing} {path}, the newest bundle", highlight=False, markup=False, soft_wrap=True)
    return str(path)
