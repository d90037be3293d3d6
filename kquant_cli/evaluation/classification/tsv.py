"""GLUE's official tab-separated files: no quoting, so that a field ends at a tab and a row at the end of a line."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from kquant_cli.errors import KQuantError, shortened
from kquant_cli.evaluation.classification.spec import Tsv
from kquant_cli.evaluation.rows import read_text


def read_tsv(path: Path, layout: Tsv, title: str) -> Iterator[tuple[str, Sequence[str]]]:
    """Where each row stands ("line 7"), and its fields in the order of `layout.columns`; `title` names the task.

    Raises
    ------
    KQuantError
        The file cannot be read, its header lacks a column, or a row is short of fields (where none are known to be).
    """
    lines = read_text(path).removeprefix("\ufeff").split("\n")
    columns = _columns(path, layout, lines[0].rstrip("\r"), title)
    for number, line in enumerate(lines, start=1):
        if not line.strip() or (layout.header and number == 1):
            continue
        fields = line.rstrip("\r").split("\t")
        if len(fields) > max(columns):
            if layout.marks is not None and (strange := fields[layout.marks[0]].strip(layout.marks[1])):
                raise KQuantError(
                    f"{path} line {number} has {shortened(strange)} in column {layout.marks[0] + 1}, which only marks "
                    f"sentences with *: give the official file of {title}"
                )
            yield f"line {number}", [fields[column] for column in columns]
        elif not layout.ragged:
            raise KQuantError(
                f"{path} line {number} has {len(fields)} fields between tabs, expected at least {max(columns) + 1}: "
                f"give the official file of {title}"
            )


def _columns(path: Path, layout: Tsv, first: str, title: str) -> list[int]:
    """The positions of the columns, by the header line where there is one."""
    if not layout.header:
        return [int(column) for column in layout.columns]
    if not first.strip():
        raise KQuantError(f"{path} is empty: give the official file of {title}")
    names = first.split("\t")
    missing = [str(column) for column in layout.columns if column not in names]
    if missing:
        raise KQuantError(
            f"{path} has no column {' and no column '.join(map(repr, missing))} in its first line "
            f"({', '.join(names)}): give the official file of {title}"
        )
    return [names.index(str(column)) for column in layout.columns]
