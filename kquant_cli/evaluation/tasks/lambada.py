"""`lambada`: the broad-context texts of LAMBADA's test split, measured in the two ways that are published.

`lambada_text` is the protocol of arXiv 2404.09737: perplexity of all texts joined by spaces, in windows of the model's
maximum that end every 512 tokens. `lambada_word` is lm-evaluation-harness's: the last word given the rest. The hub's
data sets are the ones that each takes: the original lower-case texts for the first, OpenAI's for the second.
"""

from functools import partial
from pathlib import Path
from typing import Final

from kquant_cli.errors import KQuantError
from kquant_cli.evaluation.last_word import last_word
from kquant_cli.evaluation.looks import require_lambada
from kquant_cli.evaluation.options import EvalOptions
from kquant_cli.evaluation.rows import Rows, text_rows
from kquant_cli.evaluation.tasks.task import CAUSAL, Task, perplexity_task
from kquant_cli.evaluation.texts import Text
from kquant_cli.hf.hub_data import hub_rows

PLAIN, OPENAI = "lambada_test_plain_text.txt", "lambada_test.jsonl"  # as the originals are called
HUB_PLAIN: Final = ("cimec/lambada", "plain_text")
OTHERS: Final = {"url": "C4", "label": "a task of classification"}  # columns that LAMBADA has not
HUB_OPENAI: Final = ("EleutherAI/lambada_openai", "default")


def read_text(options: EvalOptions) -> Text:
    """All texts joined by spaces."""
    rows = _read(options.data, (PLAIN, OPENAI), HUB_PLAIN)
    return Text(" ".join(rows.texts), f"{rows.description}, {len(rows.texts):,} texts joined by spaces")


def read_words(options: EvalOptions) -> Rows:
    """The texts one by one."""
    if options.limit is not None and options.limit < 1:
        raise KQuantError(f"--limit {options.limit} leaves no text: give 1 or more")
    return _read(options.data, (OPENAI, PLAIN), HUB_OPENAI)


def _read(data: Path | None, names: tuple[str, str], hub: tuple[str, str]) -> Rows:
    """The texts of `data` (JSON lines, parquet, plain lines, or a folder with one of `names`) or of the hub."""
    if data is None:
        get = f"get {' or '.join(names)} where there is a network, and pass it as --data {names[0]}"
        return Rows(tuple(hub_rows("LAMBADA", get, *hub, split="test")["text"]), f"{hub[0]} test")
    if data.is_dir():
        found = [data / name for name in names if (data / name).is_file()]
        if not found:
            raise KQuantError(f"{data} holds no LAMBADA: expected {' or '.join(names)} in it")
        data = found[0]
    texts = text_rows(data, none=OTHERS)
    require_lambada(str(data), texts)
    return Rows(tuple(texts), str(data))


LAMBADA_TEXT = perplexity_task("lambada_text", read_text, protocol="paper")
LAMBADA_WORD = Task(
    CAUSAL, frozenset({"data", "seqlen", "limit"}), read_words, partial(last_word, task="lambada_word"), unit="texts"
)
