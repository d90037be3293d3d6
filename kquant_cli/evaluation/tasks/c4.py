"""`c4`: perplexity on the first shard of C4's validation split, as GPTQ's later code takes it.

The first 1,100 documents, joined by spaces; of their tokens as many as 256 windows hold.
"""

from pathlib import Path
from typing import Final

from kquant_cli.errors import KQuantError
from kquant_cli.evaluation.looks import repeated
from kquant_cli.evaluation.options import EvalOptions
from kquant_cli.evaluation.rows import is_json, text_rows
from kquant_cli.evaluation.tasks.task import perplexity_task
from kquant_cli.evaluation.texts import Text
from kquant_cli.hf.hub_data import hub_rows

HUB_DATASET: Final = "allenai/c4"
SHARD: Final = "en/c4-validation.00000-of-00008.json.gz"
DOCUMENTS: Final = 1100
WINDOWS: Final = 256
GET: Final = f"get {SHARD} of it where there is a network, and pass that file as --data"


def read(options: EvalOptions) -> Text:
    """The shard's documents, from `options.data` (the shard, or a folder laid out as the hub's) or the hub."""
    if options.data is None:
        table = hub_rows("C4", GET, HUB_DATASET, data_files={"validation": SHARD}, split="validation")
        documents, place = list(table[:DOCUMENTS]["text"]), f"{HUB_DATASET} {SHARD}"
    else:
        file = _shard(options.data)
        documents, place = text_rows(file, limit=DOCUMENTS, beside=("url",)), str(file)
        if what := repeated(documents):
            raise KQuantError(f"{file} {what}: {GET}")
    joined = f"{place}, the first {len(documents):,} documents joined by spaces, at most {WINDOWS} windows"
    return Text(" ".join(documents), joined, most_windows=WINDOWS)


def _shard(data: Path) -> Path:
    """The file with one document a row that `data` names."""
    if data.is_dir():
        found = [file for file in (data / SHARD, data / Path(SHARD).name) if file.is_file()]
        if not found:
            raise KQuantError(f"{data} holds no C4 validation shard: expected {SHARD} in it, as on the hub")
        return found[0]
    if data.is_file() and not is_json(data) and data.suffix != ".parquet":
        raise KQuantError(
            f"{data} holds no rows, and task 'c4' takes documents: give {Path(SHARD).name} (JSON lines with a 'text'), "
            "or measure any text with --task text"
        )
    return data


C4 = perplexity_task("c4", read)
