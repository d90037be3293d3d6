"""Which checkpoint a task is run on."""

from pathlib import Path

import pytest

from kquant_cli.errors import KQuantError
from kquant_cli.evaluation import EvalOptions, place_tasks, select_tasks


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Checkpoints for two tasks, under names as the data has them, and things that are none."""
    for name in ("SST-2", "rte"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    (tmp_path / "cola").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    return tmp_path


def place(model: Path | str, names: str) -> dict[str, str]:
    return place_tasks(str(model), select_tasks(names, EvalOptions()), names.split(","))


def test_tasks_find_their_own_checkpoints(folder: Path) -> None:
    assert place(folder, "rte,sst2") == {"rte": str(folder / "rte"), "sst2": str(folder / "SST-2")}
    assert place(folder, "glue") == {"sst2": str(folder / "SST-2"), "rte": str(folder / "rte")}
    assert place(folder, "glue,demo")["demo"] == str(folder)


def test_a_single_checkpoint_serves_the_tasks_that_are_named(folder: Path) -> None:
    assert place(folder / "rte", "rte,demo") == dict.fromkeys(("rte", "demo"), str(folder / "rte"))
    assert place("owner/name", "rte") == {"rte": "owner/name"}
    assert place(folder, "demo") == {"demo": str(folder)}


@pytest.mark.parametrize(
    ("sub", "names", "says"),
    [
        ("", "rte,mrpc", r"nor a checkpoint in a sub-folder mrpc/"),
        ("", "glue,cola", r"nor a checkpoint in a sub-folder cola/"),
        ("cola", "glue", r"cola holds neither a config.json nor a checkpoint in a sub-folder cola/"),
        (
            "rte",
            "glue",
            "rte is a single checkpoint, and every task of GLUE needs its own: name one task, such as --task",
        ),
        ("notes.txt", "rte", "notes.txt is a file"),
        ("absent", "rte", "there is no folder"),
    ],
)
def test_what_has_no_checkpoint_for_a_task(folder: Path, sub: str, names: str, says: str) -> None:
    with pytest.raises(KQuantError, match=says):
        place(folder / sub, names)
