"""The registry of tasks: what it knows, what it refuses, and what each task reads."""

from pathlib import Path

import pytest

from kquant_cli import demo
from kquant_cli.errors import KQuantError
from kquant_cli.evaluation import TASKS, EvalOptions, select_tasks

FILE = Path("some.txt")


def test_a_list_of_tasks_keeps_its_order() -> None:
    assert list(select_tasks("text, wikitext2", EvalOptions(data=FILE))) == ["text", "wikitext2"]
    assert select_tasks("wikitext2", EvalOptions()) == {"wikitext2": TASKS["wikitext2"]}
    assert list(select_tasks("rte,lambada", EvalOptions())) == ["rte", "lambada_text", "lambada_word"]
    nine = ["cola", "sst2", "mrpc", "qqp", "stsb", "mnli", "qnli", "rte", "wnli"]
    assert list(select_tasks("glue", EvalOptions())) == nine
    assert all(set(task.reads) <= set(vars(EvalOptions())) for task in TASKS.values())


@pytest.mark.parametrize(
    ("names", "options", "says"),
    [
        ("wikitex2", EvalOptions(), "'wikitex2' is not known: did you mean wikitext2"),
        ("wikitext2,zzz", EvalOptions(), "'zzz' is not known: the tasks are wikitext2, text, demo"),
        ("SST-2", EvalOptions(), "'SST-2' is not known: did you mean sst2"),
        ("glu", EvalOptions(), "did you mean glue"),
        ("lambda", EvalOptions(), "did you mean lambada"),
        (" , ", EvalOptions(), "--task names no task"),
        ("cola", EvalOptions(stride=5), "--stride is not used by task 'cola'"),
        ("lambada_word,rte", EvalOptions(protocol="gptq"), "--protocol is not used by task 'lambada_word,rte'"),
        ("ptb", EvalOptions(data=FILE, data_format="text"), "--data-format is not used by task 'ptb'"),
        ("demo", EvalOptions(data=FILE), "has its own text: leave --data out"),
        ("text", EvalOptions(data_format="text"), "--data-format says how to read --data, which is missing"),
        ("text", EvalOptions(data=FILE, data_format="csv"), "'csv' is not known: use text or wikitext"),
    ],
)
def test_what_no_task_can_do_is_refused(names: str, options: EvalOptions, says: str) -> None:
    with pytest.raises(KQuantError, match=says):
        select_tasks(names, options)


def test_formats_default_to_the_tasks_own(tmp_path: Path) -> None:
    path = tmp_path / "two.txt"
    path.write_text(" = one = \n \ntwo\n", encoding="utf-8")
    options = EvalOptions(data=path)
    assert TASKS["text"].read(options).content == " = one = \n \ntwo\n"
    assert TASKS["wikitext2"].read(options).content == " = one = \n\n\n\n\ntwo\n"
    assert TASKS["text"].read(EvalOptions(data=path, data_format="wikitext")).content == " = one = \n\n\n\n\ntwo\n"
    assert TASKS["wikitext2"].read(EvalOptions(data=path, data_format="text")).content == " = one = \n \ntwo\n"


def test_text_needs_a_file() -> None:
    with pytest.raises(KQuantError, match="--data FILE"):
        TASKS["text"].read(EvalOptions())


@pytest.mark.parametrize(("task", "content"), [("text", ""), ("text", " \n"), ("wikitext2", ""), ("wikitext2", "\n\n")])
def test_an_empty_file_is_refused_as_such(tmp_path: Path, task: str, content: str) -> None:
    path = tmp_path / "empty.txt"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(KQuantError, match=r"empty\.txt is empty"):
        TASKS[task].read(EvalOptions(data=path))


def test_demo_reads_the_packages_text() -> None:
    text = TASKS["demo"].read(EvalOptions())
    assert text.content.encode() == demo.demo_text_path().read_bytes()
    assert len(text.content) > 20_000
