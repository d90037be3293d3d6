"""What a task's data look like, so that another's are refused by what is seen: a number would come of any text."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from statistics import median
from typing import Final

from kquant_cli.errors import KQuantError, shortened

ANY: Final = "or measure any text with --task text --data FILE"
SEEN_LINES: Final = 50  # of a table; its columns are as many in each
REPEATED: Final = 20  # times that lines come on the average, where a file is of one kind of line
CONTROL: Final = re.compile("[\x00-\x08\x0e-\x1f\x7f]")
HTML: Final = re.compile(r"\s*<(!doctype html|html|head|body|\?xml)\b", re.IGNORECASE)
COLUMN: Final = re.compile(r"[A-Za-z_#]\w*")
HEADING: Final = re.compile(r"(= )+[^=].*( =)+")
PTB_UNKNOWN, PTB_NUMBER = "<unk>", "N"


def other_kind(text: str, unit: str = "line") -> str | None:
    """What a text is where it is not prose, as the end of a sentence that begins with its name; None for prose.

    `unit`: what its lines are of the file.
    """
    if "\0" in text or len(CONTROL.findall(text)) > len(text) // 1000:
        found = CONTROL.search(text)
        at = 0 if found is None else found.start()
        return (
            f"has the control character U+{ord(text[at]):04X} in {unit} {text.count(chr(10), 0, at) + 1}, so is no text"
        )
    if HTML.match(text[:1000]):
        return "is HTML or XML by its first line"
    if text.lstrip("\ufeff \t\r\n")[:1] in ("{", "[") and _begins_with_json(text.lstrip("\ufeff \t\r\n")):
        return "is JSON by its first line"
    lines = list(islice(_lines(text), SEEN_LINES))
    tabs = {line.count("\t") for line in lines}
    if len(lines) > 1 and len(tabs) == 1 and tabs != {0}:
        return f"is a table by its first lines, of {tabs.pop() + 1} columns with tabs between them"
    if columns := _csv_columns(lines):
        return f"is a table by its first lines, with the columns {shortened(columns)[1:-1]}"
    return repeated(list(_lines(text)))


def repeated(rows: Sequence[str]) -> str | None:
    """What is to be said of rows that are the same again and again; None where they are not."""
    different = len(set(rows))
    if len(rows) < REPEATED or different * REPEATED > len(rows):
        return None
    return f"has {len(rows):,} lines, of which {different} differ (the first is {shortened(rows[0])})"


def require_text(place: str, text: str) -> None:
    """KQuantError for what is no text, whatever a task takes for one: nothing, or bytes that mean something else."""
    if not text.strip():
        raise KQuantError(f"{place} is empty: give a file with the text to measure")
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise KQuantError(f"{place} has the control character U+0000 in line {line}: give a text file")


def require_wikitext(place: str, rows: Sequence[str]) -> None:
    """KQuantError where rows are not those of WikiText-2's test split, in its raw form: headings as ` = Title = `."""
    if not any(row.strip() for row in rows):
        raise KQuantError(f"{place} is empty: give wiki.test.raw")
    expected = f"and task 'wikitext2' takes WikiText-2's test split: give wiki.test.raw, {ANY}"
    if what := other_kind("".join(row if row.endswith("\n") else f"{row}\n" for row in rows)):
        raise KQuantError(f"{place} {what}, {expected}")
    titles = [row.strip().strip("= ") for row in rows if HEADING.fullmatch(row.strip())]
    if not titles:
        at, first = next((at, row.strip()) for at, row in enumerate(rows, start=1) if row.strip())
        raise KQuantError(f"{place} has no heading such as ' = Title = ' (line {at} is {shortened(first)}), {expected}")
    others = {"Homarus gammarus": "validation", "Valkyria Chronicles III": "training"}
    if titles[0] in others:
        raise KQuantError(f"{place} is the {others[titles[0]]} split (its first title is {titles[0]}), {expected}")
    unknown = [number for number, row in enumerate(rows, start=1) if f" {PTB_UNKNOWN} " in row]
    if len(unknown) * 20 > len(rows):
        raise KQuantError(
            f"{place} has <unk> for rare words (in line {unknown[0]}), so is not the raw form, {expected}"
        )


def require_ptb(place: str, sentences: Sequence[str]) -> None:
    """KQuantError where sentences are not Mikolov's Penn Treebank: lower case, numbers as N, rare words as <unk>."""
    expected = f"and task 'ptb' takes the Penn Treebank's test split: give ptb.test.txt, {ANY}"
    if what := other_kind("\n".join(sentences), "sentence"):
        raise KQuantError(f"{place} {what}, {expected}")
    marked, capital = 0, []
    for number, sentence in enumerate(sentences, start=1):
        words = sentence.split()
        marked += PTB_UNKNOWN in words or PTB_NUMBER in words
        if any(word != word.lower() and PTB_NUMBER not in word.replace("-", " ").split() for word in words):
            capital.append(number)
    if len(capital) * 50 > len(sentences):
        shown_one = shortened(sentences[capital[0] - 1].strip())
        raise KQuantError(f"{place} has capital letters (sentence {capital[0]} is {shown_one}), {expected}")
    if not marked or marked * 20 < len(sentences):
        raise KQuantError(
            f"{place} has N for a number or <unk> for a rare word in {marked} of {len(sentences):,} sentences (the "
            f"first is {shortened(sentences[0].strip())}), {expected}"
        )
    others = {"consumers may want to move their telephones": "validation", "aer banknote berlitz calloway": "training"}
    for beginning, split in others.items():
        if sentences[0].strip().startswith(beginning):
            raise KQuantError(f"{place} is the {split} split (it begins with {beginning!r}), {expected}")


def require_lambada(place: str, texts: Sequence[str]) -> None:
    """KQuantError where texts are not LAMBADA's, one a row: passages of 30 to 200 words, most of 60 to 80."""
    expected = "and LAMBADA has one passage a line: give lambada_test.jsonl or lambada_test_plain_text.txt, " + ANY
    if what := other_kind("\n".join(text.replace("\n", " ") for text in texts), "row"):
        raise KQuantError(f"{place} {what}, {expected}")
    for number, text in enumerate(texts, start=1):
        if HEADING.fullmatch(text.strip()) or PTB_UNKNOWN in text.split():
            raise KQuantError(f"{place} has {shortened(text.strip())} in row {number}, {expected}")
    words = median(len(text.split()) for text in texts)
    if len(texts) >= 100 and not 30 <= words <= 150:
        raise KQuantError(f"{place} has rows of {words:g} words, by their median, {expected}")


def _begins_with_json(text: str) -> bool:
    for part in (text.partition("\n")[0], text):
        try:
            json.loads(part)
        except RecursionError:
            return True
        except ValueError:
            continue
        return True
    return False


def _csv_columns(lines: Sequence[str]) -> str | None:
    """The names of the columns of a table with commas; None where it is none."""
    try:
        rows = list(csv.reader(lines))
    except csv.Error:
        return None
    if len(rows) < 2 or len(rows[0]) < 2 or not all(COLUMN.fullmatch(name) for name in rows[0]):
        return None
    return ",".join(rows[0]) if all(len(row) == len(rows[0]) for row in rows[:-1]) else None


def _lines(text: str) -> Iterator[str]:
    """The lines that are not blank, without white space at their ends."""
    return (line.strip() for line in text.split("\n") if line.strip())
