"""JSON objects, read within a bound of bytes and of nesting, and written whole or not at all."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

from kquant_cli.errors import KQuantError, is_control
from kquant_cli.files.atomic import whole_file, write_all
from kquant_cli.files.plain_files import open_plain

MOST_BYTES = 100_000_000  # the index of a thousand shards takes 10 MB; safetensors' own bound on a header is the same
MOST_VALUES = 12_000_000  # a parsed value takes up to 100 bytes; 100,000 matrices with 100 numbers each have 10 million
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


def read_object(
    path: Path, refusals: JsonRefusals = PLAIN, most: int = MOST_BYTES, *, finite: bool = False
) -> dict[str, Any]:
    """The JSON object in the file `path`, of at most `most` bytes (a quarter where they are not all ASCII, since text
    then takes four bytes a character), with at most MOST_VALUES values, nested at most DEEPEST deep.

    `finite`: refuse NaN and Infinity, which Python's parser takes: for kquant's own files, which never hold them.

    Raises
    ------
    KQuantError
        One of `refusals`: it cannot be read, is too large (then none of it was read), is not UTF-8, not JSON, has too
        many values or too deep ones, or holds something else.
    """
    try:
        with open_plain(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > most:
                raise KQuantError(refusals.too_large.format(path=path, size=size, most=most))
            content = _read_all(file, size)
        if not content.isascii() and size > most // 4:
            raise KQuantError(refusals.too_large.format(path=path, size=size, most=most // 4))
        text = content.decode("utf-8")
        del content
        values = parse(text)
    except OSError as error:
        raise KQuantError(refusals.unreadable.format(path=path, why=error.strerror or error)) from error
    except ValueError as error:
        raise KQuantError(refusals.invalid.format(path=path, why=error)) from error
    if not isinstance(values, dict):
        raise KQuantError(refusals.no_object.format(path=path, kind=type(values).__name__))
    if why := _objection(values, finite=finite):
        raise KQuantError(refusals.invalid.format(path=path, why=why))
    return values


def parse(text: str | bytes, pairs: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """The value of a JSON text; `pairs` as json.loads has `object_pairs_hook`.

    Raises ValueError where it is not JSON, has more than MOST_VALUES values, or is nested too deep to be parsed.
    """
    marks: tuple[Any, ...] = (",", "[", "{") if isinstance(text, str) else (b",", b"[", b"{")
    if sum(text.count(mark) for mark in marks) > MOST_VALUES:
        raise ValueError(f"more than {MOST_VALUES} values")
    try:
        return json.loads(text, object_pairs_hook=pairs)
    except RecursionError as error:
        raise ValueError(f"nested more than {DEEPEST} deep") from error


def find_object(path: Path, most: int = MOST_BYTES, *, finite: bool = False) -> dict[str, Any] | None:
    """What `read_object` gives; None where it would raise: for files that are passed over unless they are right."""
    try:
        return read_object(path, most=most, finite=finite)
    except KQuantError:
        return None


def write_json(path: Path, values: object, *, ascii_only: bool = True, durable: bool = True) -> None:
    """Write `values` to `path`, readable, with keys as they come; what was there stays unless all of it is written.

    Without `ascii_only` text stays as it is, but for characters that steer a terminal. `durable` as in
    `atomic.whole_file`. Raises ValueError for what JSON cannot hold (NaN: `strict`); OSError passes through.
    """
    text = json.dumps(values, indent=1, ensure_ascii=ascii_only, allow_nan=False) + "\n"
    if not ascii_only:
        text = "".join(f"\\u{ord(c):04x}" if is_control(c) and c != "\n" else c for c in text)
    with whole_file(path, durable=durable) as file:
        write_all(file, text.encode("utf-8", "backslashreplace"))  # half a character as JSON has it: \\ud800


def strict(values: Any) -> Any:
    """`values` with each infinite or undefined number as transformers writes it into a config.json and reads it again:

    {"__float__": "Infinity"}, "-Infinity" or "NaN", where JSON itself has no word for it.
    """
    if isinstance(values, float) and not math.isfinite(values):
        return {"__float__": "NaN" if math.isnan(values) else "Infinity" if values > 0 else "-Infinity"}
    if isinstance(values, dict):
        return {key: strict(part) for key, part in values.items()}
    return [strict(part) for part in values] if isinstance(values, list | tuple) else values


def _read_all(file: FileIO, size: int) -> bytes:
    """`size` bytes, or fewer where the file ends: one raw read gives less than asked beyond 2 GB, or on a signal."""
    pieces, left = [], size
    while left and (piece := file.read(left)):
        pieces.append(piece)
        left -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _objection(values: Any, *, finite: bool) -> str:
    """Why parsed JSON is not taken, or ""; without recursion, level by level."""
    level: list[Any] = [values]
    for _ in range(DEEPEST):
        inner: list[Any] = []
        for whole in level:
            for part in whole.values() if isinstance(whole, dict) else whole:
                if isinstance(part, dict | list):
                    inner.append(part)
                elif finite and isinstance(part, float) and not math.isfinite(part):
                    return f"it holds {part}, expected finite numbers"
        if not inner:
            return ""
        level = inner
    return f"nested more than {DEEPEST} deep"
