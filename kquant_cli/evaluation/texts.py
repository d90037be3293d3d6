"""The texts that perplexity is measured on: any text file, and WikiText-2 from the hub, a folder or a file.

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
from kquant_cli.evaluation.looks import require_text, require_wikitext
from kquant_cli.evaluation.rows import parquet_column, read_text
from kquant_cli.hf.hub_data import hub_rows

HUB_DATASET: Final = "Salesforce/wikitext"
HUB_CONFIG: Final = "wikitext-2-raw-v1"
RAW_FILE: Final = "wiki.test.raw"
DATA_FORMATS: Final = ("text", "wikitext")


@dataclass(frozen=True)
class Text:
    """A text, and where it came from in words."""

    content: str
    description: str
    most_windows: int | None = None  # a protocol that takes no more tokens than so many windows hold

    @property
    def sha256(self) -> str:
        """SHA-256 of the text in UTF-8, exactly as it is tokenised."""
        return hashlib.sha256(self.content.encode()).hexdigest()


def join_rows(rows: Iterable[str]) -> str:
    """The rows of a data set as one text, as GPTQ's code joins them."""
    return "\n\n".join(rows)


def wikitext_rows(path: Path) -> list[str]:
    """The data set's rows rebuilt from a file of the raw text such as wiki.test.raw."""
    return _rows(read_text(path))


def _rows(text: str) -> list[str]:
    lines = io.StringIO(text, newline=None)  # its lines end as those of the file that the data set was made of
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
        return _table([data], f"{data} (parquet)")
    require_wikitext(str(data), wikitext_rows(data))
    return text_file(data, data_format or "wikitext")


def text_file(path: Path, data_format: str) -> Text:
    """A file as it stands (`text`), or as WikiText's rows joined by blank lines (`wikitext`); refuses an empty one."""
    joined = data_format == "wikitext"
    content = read_text(path)
    require_text(str(path), content)
    content = join_rows(_rows(content)) if joined else content
    return Text(content, f"{path}, {'WikiText rows joined by blank lines' if joined else 'verbatim'}")


def _table(files: Sequence[Path], place: str) -> Text:
    rows = parquet_column(files, "text")
    require_wikitext(place, rows)
    return Text(join_rows(rows), f"{place}, rows joined by blank lines")


def _folder(folder: Path) -> Text:
    for place in (folder / HUB_CONFIG, folder):
        shards = sorted(place.glob("test-*.parquet"))
        if shards:
            return _table(shards, f"{place} test (parquet)")
    if (folder / RAW_FILE).is_file():
        return wikitext2(folder / RAW_FILE, None)
    raise KQuantError(
        f"{folder} holds no WikiText-2: expected {HUB_CONFIG}/test-*.parquet as on the hub, or {RAW_FILE}"
    )


def _hub_rows() -> list[str]:
    get = f"get {RAW_FILE} or the hub's folder where there is a network, and pass it as --data {RAW_FILE}"
    return list(hub_rows("WikiText-2", get, HUB_DATASET, HUB_CONFIG, split="test")["text"])
