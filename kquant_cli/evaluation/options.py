"""What the user may ask of a task; None means the task's own default."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

Progress = Callable[[int, int], None]  # (windows or examples done, in all)


def no_progress(done: int, total: int) -> None:
    """The display for callers that want none."""


@dataclass(frozen=True)
class EvalOptions:
    """The options of `kquant eval` that tasks read; lengths are in tokens."""

    data: Path | None = None
    data_format: str | None = None  # text | wikitext
    protocol: str | None = None  # gptq | stride | paper
    seqlen: int | None = None  # of a window; in classification the most of an example
    stride: int | None = None
    limit: int | None = None  # windows, or examples
    progress: Progress = no_progress
