"""Files that hold one text a row: JSON lines (also gzipped), parquet, or plain lines."""

import gzip
import hashlib
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from kquant_cli.errors import KQuantError


@dataclass(frozen=True)
class Rows:
    """Texts, and where they came from in words."""

    texts: tuple[str, ...]
    description: str

    @property
    def sha256(self) -> str:
        """SHA-256 of the texts as a JSON list, in UTF-8."""
        return hashlib.sha256(json.dumps(self.texts, ensure_ascii=False).encode()).hexdigest()


def read_text(path: Path) -> str:
    """What a UTF-8 file holds, line ends as they are."""
    return "".join(_decoded([_bytes(path)], path))


def text_rows(path: Path, column: str = "text", limit: int | None = None) -> list[str]:
    """The first `limit` texts of a file (None: all); `column` names them in JSON and parquet.

    A plain file's lines are its texts, white space at their ends and blank ones left out.

    Raises
    ------
    KQuantError
        The file cannot be read, holds no text, or a row has no such column.
    """
    if path.suffix == ".parquet":
        rows: Iterable[str] = parquet_column([path], column)
    elif is_json(path):
        rows = _json_rows(path, column)
    else:
        rows = (line.strip() for line in read_text(path).split("\n") if line.strip())
    found = list(islice(rows, limit))
    if not found:
        raise KQuantError(f"{path} holds no text: give a file with one text a line, or JSON lines with a {column!r}")
    return found


def is_json(path: Path) -> bool:
    """Whether the name says that the file holds JSON lines: .json or .jsonl, also with .gz."""
    return path.name.lower().removesuffix(".gz").endswith((".json", ".jsonl"))


def parquet_column(files: Sequence[Path], column: str) -> list[str]:
    """A column of text of parquet files, in their order."""
    return [row[0] for row in parquet_rows(files, (column,))]


def parquet_rows(files: Sequence[Path], columns: Sequence[str]) -> list[tuple]:
    """Rows of parquet files, in their order, with the values of `columns`."""
    from pyarrow import ArrowException  # noqa: PLC0415
    from pyarrow.parquet import read_table  # noqa: PLC0415

    rows: list[tuple] = []
    for file in files:
        try:
            table = read_table(file, columns=list(columns))
            rows += zip(*(table[column].to_pylist() for column in columns), strict=True)
        except (OSError, ArrowException, KeyError) as error:
            names = " and ".join(repr(column) for column in columns)
            what = "a column" if len(columns) == 1 else "columns"
            raise KQuantError(f"{file} is not a parquet file with {what} {names}") from error
    return rows


def _json_rows(path: Path, column: str) -> Iterator[str]:
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        try:
            text = json.loads(line)[column]
        except (ValueError, TypeError, LookupError, RecursionError):
            text = None
        if not isinstance(text, str):
            raise KQuantError(f"{path} line {number} is not a JSON object with a text under {column!r}")
        yield text


def _lines(path: Path) -> Iterator[str]:
    """The lines of a file that may be gzipped, one at a time."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            yield from _decoded(file, path)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise KQuantError(f"{path} is not a whole gzip file: download it again") from error
    except OSError as error:
        raise KQuantError(f"{path} cannot be read ({error.strerror}): give the path of a text file") from error


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise KQuantError(f"{path} cannot be read ({error.strerror}): give the path of a text file") from error


def _decoded(parts: Iterable[bytes], path: Path) -> Iterator[str]:
    done = 0
    for part in parts:
        try:
            yield part.decode("utf-8")
        except UnicodeDecodeError as error:
            raise KQuantError(f"{path} is not UTF-8 text (byte {done + error.start}): convert it to UTF-8") from error
        done += len(part)
