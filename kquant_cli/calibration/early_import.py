"""transformers, which takes seconds to import, imported in a thread while something else is done."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Thread

from kquant_cli.hf.late_functions import late_functions


@contextmanager
def import_early(wanted: bool) -> Iterator[None]:
    """Within it, a thread imports what measuring will import, if that is `wanted`; the block ends when it has.

    Errors are left to the one who imports it then.
    """
    thread = Thread(target=_import, name="kquant-import")
    if wanted:
        thread.start()
    try:
        yield
    finally:
        if wanted:
            thread.join()


def _import() -> None:
    with suppress(Exception), late_functions():
        from kquant_cli.calibration import input_modules, lazy_model  # noqa: F401, PLC0415
