"""What the user may ask of a task; None means the task's own default."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

Progress = Callable[[int, int], None]  # (windows done, windows in all)


def no_progress(done: int, total: int) -> None:
    """The display for callers that want none."""


@dataclass(frozen=True)
class EvalOptions:
    """The options of `kquant eval` that tasks read; lengths are in tokens."""

    data: Path | None = None
    data_format: str | None = None  # text | wikitext
    protocol: str = "gptq"  # gptq | stride
    seqlen: int | None = None
    stride: int | None = None
    limit: int | None = None  # windows
    progress: Progress = no_progress
