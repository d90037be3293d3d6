"""The texts that perplexity is measured on: WikiText-2 from the hub, a folder or a file, any text file, the demo's.

WikiText-2's test split is a table of rows. GPTQ's protocol joins them by blank lines, so a file of the raw text must
become the same rows first: every line is a row with its newline, and a line of white space alone is the empty row.
"""

import hashlib
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kquant_cli.errors import KQuantError

HUB_DATASET: Final = "Salesforce/wikitext"
HUB_CONFIG: Final = "wikitext-2-raw-v1"
RAW_FILE: Final = "wiki.test.raw"
DATA_FORMATS: Final = ("text", "wikitext")


@dataclass(frozen=True)
class Text:
    """A text, and where it came from in words."""

    content: str
    description: str

    @property
    def sha256(self) -> str:
        """SHA-256 of the text in UTF-8, exactly as it is tokenised."""
        return hashlib.sha256(self.content.encode()).hexdigest()


def join_rows(rows: Iterable[str]) -> str:
    """The rows of a data set as one text, as GPTQ's code joins them."""
    return "\n\n".join(rows)


def wikitext_rows(path: Path) -> list[str]:
    """The data set's rows rebuilt from a file of the raw text such as wiki.test.raw."""
    lines = io.StringIO(
        _content(path), newline=None
    )  # its lines end as those of the file that the data set was made of
    return [line if line.strip() else "" for line in lines]


def wikitext2(data: Path | None, data_format: str | None) -> Text:
    """WikiText-2's test split from `data` (raw file, parquet file or folder in the hub's layout) or from the hub."""
    if data is None:
        return Text(join_rows(_hub_rows()), f"{HUB_DATASET} {HUB_CONFIG} test, rows joined by blank lines")
    table = data.is_dir() or data.suffix == ".parquet"
    if table and data_format == "text":
        raise KQuantError(
            f"--data-format text takes a text file verbatim, and {data} is a {'folder' if data.is_dir() else 'table'} "
            f"of rows: leave --data-format out, or name a text file"
        )
    if data.is_dir():
        return _folder(data)
    if data.suffix == ".parquet":
        return Text(join_rows(_parquet_rows([data])), f"{data} (parquet), rows joined by blank lines")
    return text_file(data, data_format or "wikitext")


def text_file(path: Path, data_format: str) -> Text:
    """A file as it stands (`text`), or as WikiText's rows joined by blank lines (`wikitext`)."""
    if data_format == "wikitext":
        return Text(join_rows(wikitext_rows(path)), f"{path}, WikiText rows joined by blank lines")
    return Text(_content(path), f"{path}, verbatim")


def _folder(folder: Path) -> Text:
    for place in (folder / HUB_CONFIG, folder):
        shards = sorted(place.glob("test-*.parquet"))
        if shards:
            return Text(join_rows(_parquet_rows(shards)), f"{place} test (parquet), rows joined by blank lines")
    if (folder / RAW_FILE).is_file():
        return text_file(folder / RAW_FILE, "wikitext")
    raise KQuantError(
        f"{folder} holds no WikiText-2: expected {HUB_CONFIG}/test-*.parquet as on the hub, or {RAW_FILE}"
    )


def _content(path: Path) -> str:
    """What a UTF-8 file holds, line ends as they are."""
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise KQuantError(f"{path} is not UTF-8 text (byte {error.start}): convert it to UTF-8") from error
    except OSError as error:
        raise KQuantError(f"{path} cannot be read ({error.strerror}): give the path of a text file") from error


def _parquet_rows(files: Sequence[Path]) -> list[str]:
    from pyarrow import ArrowException  # noqa: PLC0415
    from pyarrow.parquet import read_table  # noqa: PLC0415

    rows: list[str] = []
    for file in files:
        try:
            rows += read_table(file, columns=["text"])["text"].to_pylist()
        except (OSError, ArrowException, KeyError) as error:
            raise KQuantError(f"{file} is not a parquet file with a column 'text'") from error
    return rows


def _hub_rows() -> list[str]:
    from datasets import load_dataset  # noqa: PLC0415 (a second to import, and only needed here)

    try:
        return list(load_dataset(HUB_DATASET, HUB_CONFIG, split="test")["text"])
    except OSError as error:  # the hub cannot be reached, and the cache has no copy
        raise KQuantError(
            f"WikiText-2 is neither in the cache nor to be had from the hub ({HUB_DATASET}, {HUB_CONFIG}): "
            f"get {RAW_FILE} or the hub's folder where there is a network, and pass it as --data {RAW_FILE}"
        ) from error
