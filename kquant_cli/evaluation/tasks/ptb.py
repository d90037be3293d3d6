"""`ptb`: perplexity on the Penn Treebank's test split, sentences joined by spaces, as GPTQ's later code does.

The sentences are those of Mikolov's version: lower case, numbers as N, rare words as <unk>.
"""

from typing import Final

from kquant_cli.evaluation.looks import require_ptb
from kquant_cli.evaluation.options import EvalOptions
from kquant_cli.evaluation.rows import text_rows
from kquant_cli.evaluation.tasks.task import perplexity_task
from kquant_cli.evaluation.texts import Text
from kquant_cli.hf.hub_data import hub_rows

HUB_DATASET: Final = "ptb-text-only/ptb_text_only"
HUB_CONFIG: Final = "penn_treebank"
HUB_REVISION: Final = "refs/convert/parquet"  # the main branch is a script, which `datasets` no longer runs
GET: Final = "get ptb.test.txt (one sentence a line) where there is a network, and pass it as --data ptb.test.txt"


def read(options: EvalOptions) -> Text:
    """The test sentences, from the file `options.data` (lines, or a column 'sentence') or the hub."""
    if options.data is None:
        table = hub_rows("Penn Treebank", GET, HUB_DATASET, HUB_CONFIG, split="test", revision=HUB_REVISION)
        sentences, place = list(table["sentence"]), f"{HUB_DATASET} test"
    else:
        sentences, place = text_rows(options.data, "sentence"), str(options.data)
        require_ptb(place, sentences)
    return Text(" ".join(sentence.strip() for sentence in sentences), f"{place}, sentences joined by spaces")


PTB = perplexity_task("ptb", read)
