"""Penn Treebank and C4: the text that GPTQ's code makes of them, from the hub or a file."""

import gzip
import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest
import tiny_text_models

from kquant_cli.errors import KQuantError
from kquant_cli.evaluation import TASKS, EvalOptions
from kquant_cli.evaluation.tasks.c4 import DOCUMENTS, SHARD
from kquant_cli.hf.loading import LoadedModel

SENTENCES = ["the kettle <unk> at N degrees", "no one came", "seven boats left the harbour"]


def test_ptb_is_joined_by_spaces(tmp_path: Path) -> None:
    raw = tmp_path / "ptb.test.txt"
    raw.write_text("".join(f" {sentence} \n" for sentence in SENTENCES), encoding="utf-8")
    table = tmp_path / "test.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"sentence": SENTENCES}), table)
    for data in (raw, table):
        assert TASKS["ptb"].read(EvalOptions(data=data)).content == " ".join(SENTENCES)


def test_ptb_from_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(
        "datasets.load_dataset", lambda *args, **options: asked.append((args, options)) or {"sentence": SENTENCES}
    )
    assert TASKS["ptb"].read(EvalOptions()).content == " ".join(SENTENCES)
    ((name, config), options) = asked[0]
    assert (name, config, options["split"]) == ("ptb-text-only/ptb_text_only", "penn_treebank", "test")


def shard(root: Path, documents: list[str]) -> Path:
    path = root / SHARD
    path.parent.mkdir(parents=True)
    lines = "".join(json.dumps({"text": text, "url": "x"}) + "\n" for text in documents)
    path.write_bytes(gzip.compress(lines.encode()))
    return path


def test_c4_is_the_first_documents_of_the_shard(tmp_path: Path) -> None:
    documents = [f"Document {i}.\nIt ends." for i in range(DOCUMENTS + 20)]
    path = shard(tmp_path, documents)
    for data in (path, tmp_path, path.parent):
        assert TASKS["c4"].read(EvalOptions(data=data)).content == " ".join(documents[:DOCUMENTS])


def test_c4_takes_no_more_than_256_windows(tiny_opt: LoadedModel, tmp_path: Path) -> None:
    words = tiny_text_models.text(900, seed=9)
    path = shard(tmp_path, [words] * 4)
    options = EvalOptions(data=path, seqlen=4)
    result = TASKS["c4"].run(tiny_opt, TASKS["c4"].read(options), options)
    assert (result.windows, result.text_tokens, result.limit) == (256, 1024, None)
    assert "at most 256 windows" in result.sentence()
    strided = EvalOptions(data=path, seqlen=4, protocol="stride", stride=4)
    assert TASKS["c4"].run(tiny_opt, TASKS["c4"].read(strided), strided).text_tokens == 1024


def test_c4_from_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    class Table(list[str]):
        def __getitem__(self, rows: Any) -> Any:
            return {"text": list(self)[rows]}

    asked: list[Any] = []
    table = Table(f"document {i}" for i in range(2000))
    monkeypatch.setattr("datasets.load_dataset", lambda *args, **options: asked.append((args, options)) or table)
    assert TASKS["c4"].read(EvalOptions()).content == " ".join(f"document {i}" for i in range(DOCUMENTS))
    assert asked == [(("allenai/c4",), {"data_files": {"validation": SHARD}, "split": "validation"})]


@pytest.mark.parametrize("reachable", [True, False])
def test_only_the_cache_is_asked_where_the_hub_does_not_answer(
    monkeypatch: pytest.MonkeyPatch, reachable: bool
) -> None:
    offline: list[bool] = []

    def dataset_info(self: Any, name: str, **options: Any) -> None:
        if not reachable:
            raise OSError("no route to host")

    def load_dataset(*args: str, **options: str) -> dict[str, list[str]]:
        offline.append(datasets.config.HF_HUB_OFFLINE)
        return {"sentence": SENTENCES}

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", dataset_info)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    TASKS["ptb"].read(EvalOptions())
    assert offline == [not reachable]
    assert datasets.config.HF_HUB_OFFLINE is False


def test_what_is_no_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prose = tmp_path / "prose.txt"
    prose.write_text("No documents here.\n", encoding="utf-8")
    with pytest.raises(KQuantError, match=r"prose\.txt holds no rows, and task 'c4' takes documents"):
        TASKS["c4"].read(EvalOptions(data=prose))
    with pytest.raises(KQuantError, match="holds no C4 validation shard: expected en/c4-validation"):
        TASKS["c4"].read(EvalOptions(data=tmp_path))
    with pytest.raises(KQuantError, match=r"absent\.json\.gz cannot be read"):
        TASKS["c4"].read(EvalOptions(data=tmp_path / "absent.json.gz"))
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(KQuantError, match=r"C4 is neither in the cache .* get en/c4-validation\.00000"):
        TASKS["c4"].read(EvalOptions())
    with pytest.raises(KQuantError, match=r"Penn Treebank is neither .* pass it as --data ptb\.test\.txt"):
        TASKS["ptb"].read(EvalOptions())
