"""Where an output is written: one process, what is ours and what is not, what a killed run leaves, what cannot be."""

import errno
import os
from pathlib import Path
from shutil import _ntuple_diskusage

import pytest

from kquant_cli.bundle import output_folder
from kquant_cli.bundle.output_folder import amount, check_place, open_output, put_in_place, require_space, writing
from kquant_cli.bundle.part_folder import fresh, mark_complete, open_part
from kquant_cli.errors import KQuantError

NOTHING = lambda _: None  # noqa: E731


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "source").mkdir()
    (tmp_path / "place").mkdir()
    return tmp_path / "place"


def opened(out: Path, say=NOTHING, **kwargs):
    return open_output(out, out.parents[len(out.parents) - 2] / "no-source", say, **kwargs)


def tree(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): path.read_text() if path.is_file() else "folder"
        for path in folder.rglob("*")
    }


def write(out: Path, text: str) -> None:
    with opened(out) as part:
        (fresh(part) / "file").write_text(text)
        put_in_place(part, out, NOTHING)


def test_an_output_takes_its_place_and_nothing_else_stays(place):
    write(place / "b", "one")
    write(place / "b", "two")
    assert tree(place) == {"b": "folder", "b/file": "two"}


@pytest.mark.parametrize("spelling", ["b", "x/../b", "link/b", "absolute"])
def test_one_output_has_one_writer_however_it_is_spelled(place, monkeypatch, spelling):
    (place / "x").mkdir()
    (place / "link").symlink_to(place)
    monkeypatch.chdir(place)
    other = place / "b" if spelling == "absolute" else Path(spelling)
    with opened(place / "b"):
        held = rf"is being written by process {os.getpid()} on .* since \d{{4}}-"
        with pytest.raises(KQuantError, match=held) as no, opened(other):
            pass
        assert str(no.value).startswith(f"{other}: ")
        with opened(place / "c"):  # others are not disturbed
            pass
    with opened(other):
        pass
    assert tree(place) == {"x": "folder", "link": "folder"}


def test_without_locks_that_is_said_and_all_goes_on(place, monkeypatch):
    import fcntl

    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    said = []
    with opened(place / "b", said.append):
        pass
    assert len(said) == 1
    assert "without locks" in said[0]


@pytest.mark.parametrize("kind", ["file in it", "lock of another", "state of another", "link", "file"])
def test_a_part_folder_of_others_stays(place, kind):
    part, elsewhere = place / "b.part", place / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "thesis.tex").write_text("x")
    if kind == "link":
        part.symlink_to(elsewhere)
    elif kind == "file":
        part.write_text("x")
    else:
        part.mkdir()
        name = {"file in it": "thesis.tex", "lock of another": "lock", "state of another": "state.json"}[kind]
        (part / name).write_text('{"owner": 7}')
    before = tree(place)
    with pytest.raises(KQuantError, match=r"b\.part"), opened(place / "b"):
        pass
    assert tree(place) == before


@pytest.mark.parametrize(
    "name", ["new", "old", "matrices", "kept", "state.json", "lock", "matrices/a.json", "thesis.tex"]
)
def test_what_others_put_into_ours_stays(place, name):
    """A link in place of each part, and a file beside them."""
    (place / "elsewhere").mkdir()
    (place / "elsewhere" / "thesis.tex").write_text("x")
    part, _ = open_part(place / "b", "me")
    (part / "matrices").mkdir()
    with opened(place / "b"):
        (part / "tuning.safetensors").write_text("work")
    if name == "thesis.tex":
        (part / name).write_text("y")
    else:
        if (part / name).is_dir():
            (part / name).rmdir()
        (part / name).unlink(missing_ok=True)
        (part / name).symlink_to(place / "elsewhere")
    before = tree(place)
    with pytest.raises(KQuantError, match=name), opened(place / "b"):
        open_part(place / "b", "another")
    assert tree(place) == before


@pytest.mark.parametrize("there", [[], ["lock"]])
def test_who_was_killed_before_the_first_word_is_nobody(place, there):
    (place / "b.part").mkdir()
    for name in there:
        (place / "b.part" / name).touch()
    write(place / "b", "one")
    assert tree(place) == {"b": "folder", "b/file": "one"}


def test_work_stays_and_what_cannot_be_gone_on_from_goes(place):
    def interrupted(*, work: bool) -> None:
        with pytest.raises(KeyboardInterrupt), opened(place / "a" / "b") as part:
            open_part(place / "a" / "b", "me")
            (fresh(part) / "file").write_text("half")
            if work:
                (part / "matrices").mkdir()
                (part / "matrices" / "x.json").write_text("whole")
            raise KeyboardInterrupt

    interrupted(work=False)
    assert tree(place) == {}
    interrupted(work=True)
    assert set(tree(place)) == {"a", "a/b.part"} | {
        f"a/b.part/{name}" for name in ("lock", "state.json", "matrices", "matrices/x.json")
    }
    with opened(place / "a" / "b"):
        assert open_part(place / "a" / "b", "me") == (place / "a" / "b.part", False)
        assert open_part(place / "a" / "b", "another") == (place / "a" / "b.part", True)
    assert tree(place) == {"a": "folder"}


@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize("placed", [True, False])
def test_what_a_killed_run_left_is_finished(place, old, placed):
    out, part = place / "b", open_part(place / "b", "me")[0]
    (part / "matrices").mkdir()
    (fresh(part) / "file").write_text("new")
    mark_complete(part)
    if old:
        (part / "old").mkdir()
        (part / "old" / "file").write_text("old")
    if placed:
        (part / "new").rename(out)
    said = []
    with opened(out, said.append):
        pass
    assert tree(place) == {"b": "folder", "b/file": "new"}
    assert len(said) == (not placed)


def test_an_output_that_came_while_another_waits_is_not_touched(place):
    out, part = place / "b", open_part(place / "b", "me")[0]
    fresh(part)
    mark_complete(part)
    (part / "old").mkdir()
    out.mkdir()
    (out / "thesis.tex").write_text("x")
    before = tree(place)
    with pytest.raises(KQuantError, match=r"move .* away"), opened(out):
        pass
    assert {name: before[name] for name in before if "lock" not in name} == {
        name: text for name, text in tree(place).items() if "lock" not in name
    }


def test_an_interruption_between_the_two_renamings_ends_with_the_new_one(place, monkeypatch):
    write(place / "b", "old")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    place_new = output_folder._place
    with pytest.raises(KeyboardInterrupt), opened(place / "b") as part:
        (fresh(part) / "file").write_text("new")
        monkeypatch.setattr(output_folder, "_place", interrupted)
        try:
            put_in_place(part, place / "b", NOTHING)
        finally:
            monkeypatch.setattr(output_folder, "_place", place_new)
    assert tree(place) == {"b": "folder", "b/file": "new"}


def test_what_comes_into_the_old_output_at_the_last_moment_brings_it_back(place):
    write(place / "b", "old")

    def check(folder: Path) -> None:
        if folder == place / "b":
            (folder / "thesis.tex").write_text("x")
        else:
            raise KQuantError("not ours")

    with pytest.raises(KQuantError, match="not ours"), opened(place / "b") as part:
        (fresh(part) / "file").write_text("new")
        put_in_place(part, place / "b", check)
    assert tree(place) == {"b": "folder", "b/file": "old", "b/thesis.tex": "x"}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("\ud800", "\ufffd: has a character"),
        ("a\nb", "a b: has a character"),
        ("a\x1b[2J", "a\ufffd\\[2J: has a character"),
        ("a\0b", "has a character"),
        ("x" * 250, "not a possible folder"),
        ("é" * 120, "not a possible folder"),
        ("x/..", "ends in"),
        ("a/" * 2040 + "b", "not a possible folder"),
    ],
)
def test_names_that_cannot_be(place, name, words):
    with pytest.raises(KQuantError, match=words) as refused:
        check_place(place / name, place.parent / "source")
    assert "\n" not in str(refused.value)
    str(refused.value).encode()
    assert tree(place) == {}


def test_a_folder_that_cannot_be_written(place, monkeypatch):
    """Also by root, whom no permission stops."""

    def denied(self: Path, *_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", denied)
        refused = pytest.raises(KQuantError, match=r"b: cannot be written \(Permission denied\)")
        with refused, writing(place / "b", 0), opened(place / "b"):
            pass
        with opened(place / "b", reading=True) as part:
            assert part is None
    assert tree(place) == {}


def test_space_is_asked_for_first(place, monkeypatch):
    monkeypatch.setattr(output_folder.shutil, "disk_usage", lambda _: _ntuple_diskusage(10_000, 9_000, 1_000))
    (place / "file").write_bytes(bytes(500))
    require_space(place, place / "b", 1_500)
    with pytest.raises(KQuantError, match=r"1\.6 kB are needed and 1\.5 kB are free"):
        require_space(place, place / "b", 1_600)
    monkeypatch.setattr(output_folder.shutil, "disk_usage", lambda _: _ntuple_diskusage(0, 0, 0))
    require_space(place, place / "b", 1 << 50)


def test_amounts_are_sensible():
    assert [amount(n) for n in (0, 80, 12_345, 1_500_000, 4_000_000_000)] == [
        *("0 bytes", "80 bytes", "12.3 kB", "1.5 MB", "4 GB")
    ]
    for needed, words in ((0, "device; free"), (60_000, "about 60 kB are needed")):
        with pytest.raises(KQuantError, match=words), writing(Path("b"), needed):
            raise OSError(errno.ENOSPC, "No space left on device")


def test_a_state_that_cannot_be_read_for_once_is_not_taken_for_none(place, monkeypatch):
    """Else a whole output that has its place would be forgotten, and its part folder would stay for ever."""
    left, opening = [1], os.open

    def refuse(path, *args, **options):
        if str(path).endswith("state.json") and left:
            left.pop()
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return opening(path, *args, **options)

    with opened(place / "b") as part:
        (part / "matrices").mkdir()
        (part / "matrices" / "1").write_text("x")
        (fresh(part) / "file").write_text("one")
        put_in_place(part, place / "b", NOTHING)
        monkeypatch.setattr(os, "open", refuse)
    assert not left
    with opened(place / "b"):
        pass
    assert tree(place) == {"b": "folder", "b/file": "one"}
