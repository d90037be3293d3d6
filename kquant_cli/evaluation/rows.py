"""Files that hold one text a row: JSON lines (also gzipped), parquet, or plain lines."""

import gzip
import hashlib
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BufferedReader, FileIO
from itertools import islice
from pathlib import Path
from typing import Final

from kquant_cli.errors import KQuantError, shortened
from kquant_cli.files.plain_files import open_plain

Look = Mapping[str, str] | None

MOST_BYTES: Final = 1_000_000_000
LONGEST_LINE: Final = 10_000_000
HALF: Final = re.compile("[\ud800-\udfff]")  # of a pair, alone: no UTF-8 has it
MAGIC: Final = {
    **{b"PAR1": "parquet", b"\x1f\x8b": "gzip", b"PK\x03\x04": "zip", b"%PDF-": "PDF", b"\x89PNG": "PNG"},
    **{b"\x7fELF": "program", b"SQLite format 3": "SQLite", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstandard"},
}


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


def text_rows(
    path: Path, column: str = "text", limit: int | None = None, *, beside: tuple[str, ...] = (), none: Look = None
) -> list[str]:
    """The first `limit` texts of a file (None: all); `column` names them in JSON and parquet.

    A plain file's lines are its texts, white space at their ends and blank ones left out. JSON and parquet must have
    the columns `beside`; `none` gives the name of a data set by a column of JSON that tells it, which is refused.

    Raises
    ------
    KQuantError
        The file cannot be read, holds no text, or a row has no such column.
    """
    if path.suffix == ".parquet":
        rows: Iterable[str] = (row[0] for row in parquet_rows([path], (column, *beside)))
    elif is_json(path):
        rows = _json_rows(path, column, beside, none or {})
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
            with open_plain(file) as plain:
                size = sum(_row_group_bytes(plain))
            if size > MOST_BYTES:
                raise KQuantError(f"{file} holds {size} bytes, and at most {MOST_BYTES} are read: give a part of it")
            table = read_table(file, columns=list(columns))
            rows += zip(*(table[column].to_pylist() for column in columns), strict=True)
        except (OSError, ArrowException, KeyError) as error:
            names = " and ".join(repr(column) for column in columns)
            what = "a column" if len(columns) == 1 else "columns"
            raise KQuantError(f"{file} is not a parquet file with {what} {names}") from error
    return rows


def _row_group_bytes(file: FileIO) -> Iterator[int]:
    """The bytes of each part of a parquet file, unpacked."""
    from pyarrow.parquet import read_metadata  # noqa: PLC0415

    whole = read_metadata(file)
    return (whole.row_group(number).total_byte_size for number in range(whole.num_row_groups))


def label_names(file: Path, column: str) -> list[str] | None:
    """What the numbers of a column of a parquet file mean, by the hub's note in it; None where it has none."""
    from pyarrow.parquet import read_schema  # noqa: PLC0415

    try:
        note = json.loads((read_schema(file).metadata or {}).get(b"huggingface", b"{}"))
        names = note["info"]["features"][column]["names"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    return [str(name) for name in names] if isinstance(names, list) else None


def _json_rows(path: Path, column: str, beside: tuple[str, ...], none: Mapping[str, str]) -> Iterator[str]:
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            text = row[column]
        except (ValueError, TypeError, LookupError, RecursionError):
            text = None
        if not isinstance(text, str):
            raise KQuantError(f"{path} line {number} is not a JSON object with a text under {column!r}")
        if HALF.search(text):
            raise KQuantError(f"{path} line {number} has half a character (\\ud800 or the like): give a whole text")
        if missing := [name for name in beside if name not in row]:
            raise KQuantError(
                f"{path} line {number} has no {' and no '.join(map(repr, missing))} beside its text (it has "
                f"{shortened(list(row))}): give the data set's own file, or measure any text with --task text"
            )
        if others := [name for name in none if name in row]:
            raise KQuantError(
                f"{path} line {number} has {others[0]!r} beside its text, so is of {none[others[0]]}: give the task's "
                "own file, or measure any text with --task text"
            )
        yield text


def _lines(path: Path) -> Iterator[str]:
    """The lines of a file that may be gzipped, one at a time."""
    try:
        with BufferedReader(open_plain(path)) as plain, gzip.open(plain) if path.suffix == ".gz" else plain as file:
            lines = iter(lambda: file.readline(LONGEST_LINE + 1), b"")
            yield from _decoded(_bounded(lines, path), path)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise KQuantError(f"{path} is not a whole gzip file: download it again") from error
    except OSError as error:
        raise KQuantError(f"{path} cannot be read ({error.strerror}): give the path of a text file") from error


def _bytes(path: Path) -> bytes:
    try:
        with open_plain(path) as file:
            size = file.seek(0, 2)
            file.seek(0)
            if size > MOST_BYTES:
                raise KQuantError(f"{path} has {size} bytes, and at most {MOST_BYTES} are read: give a part of it")
            content = file.readall()
    except OSError as error:
        raise KQuantError(f"{path} cannot be read ({error.strerror}): give the path of a text file") from error
    kind = next((kind for magic, kind in MAGIC.items() if content.startswith(magic)), None)
    if kind is not None:
        raise KQuantError(f"{path} is a {kind} file by its first bytes: give a text file, or name it as what it is")
    return content


def _bounded(lines: Iterable[bytes], path: Path) -> Iterator[bytes]:
    """The lines, up to the bounds: a gzip file of a megabyte may hold a gigabyte."""
    done = 0
    for line in lines:
        done += len(line)
        if len(line) > LONGEST_LINE or done > MOST_BYTES:
            most = f"{LONGEST_LINE} bytes a line, {MOST_BYTES} in all"
            raise KQuantError(f"{path} holds more than is read ({most}): give a part of it")
        yield line


def _decoded(parts: Iterable[bytes], path: Path) -> Iterator[str]:
    done = 0
    for part in parts:
        try:
            yield part.decode("utf-8")
        except UnicodeDecodeError as error:
            raise KQuantError(f"{path} is not UTF-8 text (byte {done + error.start}): convert it to UTF-8") from error
        done += len(part)
