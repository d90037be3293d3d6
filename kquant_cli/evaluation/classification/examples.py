"""The examples of a task: from a folder of official TSV files, a folder laid out as the hub's, or the hub.

All three give the same examples and hence the same hash: scores, which the hub keeps in float32, are rounded to the
three decimals that they were published with.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kquant_cli.errors import KQuantError, shortened
from kquant_cli.evaluation.classification.spec import Spec, plain
from kquant_cli.evaluation.classification.tsv import read_tsv
from kquant_cli.evaluation.looks import repeated
from kquant_cli.evaluation.rows import label_names, parquet_rows
from kquant_cli.hf.hub_data import hub_rows

HIGHEST_SCORE = 5.0
MANY = 100  # examples: of so many, some have another label


@dataclass(frozen=True)
class Examples:
    """Texts (a sentence or a pair each) with their labels: numbers in the task's order, or scores."""

    texts: tuple[tuple[str, ...], ...]
    labels: tuple[float, ...]
    description: str

    @property
    def sha256(self) -> str:
        """SHA-256 of the examples as a JSON list of [texts, label], in UTF-8."""
        rows = [[texts, label] for texts, label in zip(self.texts, self.labels, strict=True)]
        return hashlib.sha256(json.dumps(rows, ensure_ascii=False).encode()).hexdigest()

    def first(self, limit: int | None) -> "Examples":
        """The first `limit` examples (None: all)."""
        return self if limit is None else Examples(self.texts[:limit], self.labels[:limit], self.description)


def read_examples(spec: Spec, data: Path | None, split: str) -> Examples:
    """The examples of one of the hub's splits, from `data` or the hub.

    Raises
    ------
    KQuantError
        They are not there, a file is empty or lacks a column, or a label is none of the task's.
    """
    rows, place = _hub(spec, split) if data is None else _local(spec, data, split)
    texts, labels = [], []
    for where, (*fields, label) in rows:
        if not all(isinstance(field, str) for field in fields):
            raise KQuantError(f"{place} {where}: expected text under {' and '.join(spec.columns)}")
        texts.append(tuple(fields))
        labels.append(_label(spec, label, f"{place} {where}"))
    _require_different(spec, place, texts, labels)
    if not texts:
        raise KQuantError(f"{place} holds no examples: give the whole {spec.tsv_file(split)} of {spec.folder}")
    return Examples(tuple(texts), tuple(labels), place)


def _require_different(spec: Spec, place: str, texts: Sequence[tuple[str, ...]], labels: Sequence[float]) -> None:
    """KQuantError where many examples are one, or have one label, as where a test split's are hidden."""
    if what := repeated([" ".join(fields) for fields in texts]):
        raise KQuantError(f"{place} {what}: give the official file of {spec.folder}")
    if len(labels) >= MANY and len(set(labels)) == 1:
        raise KQuantError(
            f"{place} has the label {labels[0]:g} in every one of {len(labels):,} rows, as where a test split's are "
            f"hidden: give the validation split of {spec.folder}"
        )


Row = tuple[str, Sequence[Any]]  # where it stands, in words; the texts and then the label


def _local(spec: Spec, data: Path, split: str) -> tuple[Iterable[Row], str]:
    """The rows of the folder or file `data`, and its name."""
    if data.is_file():
        if len(spec.splits) > 1:
            raise KQuantError(
                f"task {spec.name!r} has {len(spec.splits)} files: give --data the folder that holds them"
            )
        return _file(spec, data)
    if not data.is_dir():
        raise KQuantError(f"there is no {data}: give --data the folder that holds {_expected(spec, split)}")
    for folder in (*sorted(sub for sub in data.iterdir() if sub.is_dir() and plain(sub.name) == spec.name), data):
        if (folder / spec.tsv_file(split)).is_file():
            return _file(spec, folder / spec.tsv_file(split))
        shards = sorted(folder.glob(f"{split}-*.parquet"))
        if shards:
            return _numbered(_table(spec, shards)), f"{folder} {split} (parquet)"
    raise KQuantError(f"{data} holds no {spec.folder}: expected {_expected(spec, split)}")


def _expected(spec: Spec, split: str) -> str:
    return f"{spec.folder}/{spec.tsv_file(split)} (the official file), or {spec.name}/{split}-*.parquet as on the hub"


def _file(spec: Spec, file: Path) -> tuple[Iterable[Row], str]:
    if file.suffix == ".parquet":
        return _numbered(_table(spec, [file])), f"{file} (parquet)"
    return _official(spec, file), str(file)


def _official(spec: Spec, file: Path) -> Iterable[Row]:
    """The rows of an official file, whose labels are of its kind: another task's with the same columns has others."""
    for where, row in read_tsv(file, spec.tsv, spec.folder):
        label = row[-1].strip()
        if spec.labels and (label.isdecimal() if spec.tsv.named else label.lower() in spec.labels):
            expected = ", ".join(spec.labels if spec.tsv.named else map(str, range(len(spec.labels))))
            raise KQuantError(
                f"{file} {where}: the label is {shortened(label)}, and in the official file of {spec.folder} it is one "
                f"of {expected}: give that file"
            )
        yield where, row


def _table(spec: Spec, files: Sequence[Path]) -> list[tuple]:
    """The rows of parquet files; KQuantError where they say that their labels mean something else."""
    rows = parquet_rows(files, (*spec.columns, "label"))
    for file in files:
        names = label_names(file, "label")
        if spec.labels and names is not None and [plain(name) for name in names] != [plain(n) for n in spec.labels]:
            raise KQuantError(
                f"{file} has the labels {shortened(list(names))}, and those of {spec.folder} are "
                f"{', '.join(spec.labels)}: give the hub's file of {spec.name}"
            )
    return rows


def _hub(spec: Spec, split: str) -> tuple[Iterable[Row], str]:
    get = (
        f"get the official {spec.folder}/{spec.tsv_file(split)}, or the hub's folder {spec.name}, where there is a "
        "network, and pass the folder that holds it as --data"
    )
    table = hub_rows(f"GLUE's {spec.folder}", get, spec.dataset, spec.name, split=split)
    rows = zip(*(table[column] for column in (*spec.columns, "label")), strict=True)
    return _numbered(rows), f"{spec.dataset} {spec.name} {split}"


def _numbered(rows: Iterable[Sequence[Any]]) -> Iterable[Row]:
    return ((f"row {number}", row) for number, row in enumerate(rows, start=1))


def _label(spec: Spec, value: Any, where: str) -> float:
    """The label's number in the task's order, or the score, from a number or a name."""
    if not spec.labels:
        try:
            score = round(float(value), 3)
        except (TypeError, ValueError):
            score = -1.0
        if not 0 <= score <= HIGHEST_SCORE:
            raise KQuantError(f"{where}: {value!r} is no score of {spec.folder}, which are from 0 to {HIGHEST_SCORE:g}")
        return score
    known = {str(number): number for number in range(len(spec.labels))}
    known |= {name: number for number, name in enumerate(spec.labels)}
    number = known.get(str(value).strip().lower())
    if number is None:
        hidden = "; a test split's labels are hidden: take the validation split" if str(value) == "-1" else ""
        raise KQuantError(f"{where}: {value!r} is no label of {spec.folder}, which has {', '.join(known)}{hidden}")
    return number
