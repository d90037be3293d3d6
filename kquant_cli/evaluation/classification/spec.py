"""What makes a classification task: its columns, labels, metrics, and how its official files are laid out."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Tsv:
    """Where an official tab-separated file has texts and label: columns by name, or by position without a header line.

    `ragged`: the official files have broken rows, which the hub's data set leaves out. `named`: the label is its name,
    and else a number. `marks`: the only letters of a further column, by its position.
    """

    texts: tuple[str, ...] | tuple[int, ...]
    label: str | int
    ragged: bool = False
    named: bool = False
    marks: tuple[int, str] | None = None

    @property
    def header(self) -> bool:
        """Whether the first line names the columns."""
        return isinstance(self.label, str)

    @property
    def columns(self) -> tuple[str | int, ...]:
        """The columns to take: the texts' and the label's."""
        return (*self.texts, self.label)


@dataclass(frozen=True)
class Spec:
    """A task of the hub's `dataset`; `folder` is what the official download calls it, such as SST-2.

    `columns` hold the sentence, or the two of a pair. `labels` are in the order of the hub's numbers; none means a
    score from 0 to 5. `splits`: the parts that are measured, by the ending of their metrics' names.
    """

    name: str
    folder: str
    columns: tuple[str, ...]
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    tsv: Tsv
    dataset: str = "nyu-mll/glue"
    splits: tuple[tuple[str, str], ...] = (("", "validation"),)

    @property
    def outputs(self) -> int:
        """How many numbers a model for this task gives: one a label, or the score alone."""
        return len(self.labels) or 1

    def tsv_file(self, split: str) -> str:
        """The official file of one of the hub's splits: dev.tsv, dev_matched.tsv, train.tsv."""
        return f"{split.replace('validation', 'dev')}.tsv"


def plain(name: str) -> str:
    """A name without case and punctuation, so that SST-2, sst_2 and sst2 are one."""
    return "".join(character for character in name.lower() if character.isalnum())
