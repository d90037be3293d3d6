"""JSON objects, read within a bound of bytes and of nesting, and written whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kquant_cli.errors import KQuantError
from kquant_cli.files.atomic import whole_file, write_all

MOST_BYTES = 100_000_000  # the index of a thousand shards takes 10 MB; safetensors' own bound on a header is the same
DEEPEST = 64  # a bundle's config, of all that kquant reads the deepest, nests 6 deep; Python's own bound is 1000 calls


@dataclass(frozen=True)
class JsonRefusals:
    """What a room says of a file that it cannot use, as format strings: {path}, and what else each may name."""

    unreadable: str  # {why}: the system's words
    invalid: str  # {why}: the parser's
    no_object: str  # {kind}: the type of what it holds
    too_large: str  # {size} bytes, {most}


PLAIN = JsonRefusals(
    unreadable="{path} cannot be read ({why})",
    invalid="{path} is not valid JSON ({why})",
    no_object="{path} should hold a JSON object and holds a {kind}",
    too_large="{path} has {size} bytes, and at most {most} are read",
)


def read_object(path: Path, refusals: JsonRefusals = PLAIN, most: int = MOST_BYTES) -> dict[str, Any]:
    """The JSON object in the file `path`, of at most `most` bytes and nested at most DEEPEST deep.

    Raises
    ------
    KQuantError
        One of `refusals`: it cannot be read, is too large (then none of it was read), is not UTF-8, not JSON or too
        deep, or holds something else.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size  # 0 of what has no end (/dev/zero), which so is not read
            if size > most:
                raise KQuantError(refusals.too_large.format(path=path, size=size, most=most))
            content = file.read(size)
        values = json.loads(content.decode("utf-8"))
    except OSError as error:
        raise KQuantError(refusals.unreadable.format(path=path, why=error.strerror or error)) from error
    except (ValueError, RecursionError) as error:
        raise KQuantError(refusals.invalid.format(path=path, why=error)) from error
    if not isinstance(values, dict):
        raise KQuantError(refusals.no_object.format(path=path, kind=type(values).__name__))
    if not _within(values, DEEPEST):
        raise KQuantError(refusals.invalid.format(path=path, why=f"nested more than {DEEPEST} deep"))
    return values


def find_object(path: Path, most: int = MOST_BYTES) -> dict[str, Any] | None:
    """What `read_object` gives; None where it would raise: for files that are passed over unless they are right."""
    try:
        return read_object(path, most=most)
    except KQuantError:
        return None


def write_json(path: Path, values: object, *, ascii_only: bool = True, durable: bool = True) -> None:
    """Write `values` to `path`, readable, with keys as they come; what was there stays unless all of it is written.

    `durable` as in `atomic.whole_file`. Raises ValueError for what JSON cannot hold (NaN); OSError passes through.
    """
    text = json.dumps(values, indent=1, ensure_ascii=ascii_only, allow_nan=False) + "\n"
    with whole_file(path, durable=durable) as file:
        write_all(file, text.encode("utf-8", "backslashreplace"))  # half a character as JSON has it: \\ud800


def _within(values: object, depth: int) -> bool:
    """Whether dicts and lists are within each other at most `depth` times; without recursion, level by level."""
    level = [values]
    for _ in range(depth):
        level = [part for whole in level for part in _parts(whole) if isinstance(part, dict | list)]
        if not level:
            return True
    return False


def _parts(values: object) -> Iterable[object]:
    if isinstance(values, dict):
        return values.values()
    return values if isinstance(values, list) else ()
