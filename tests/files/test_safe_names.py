"""Which names are those of files within a folder, on every system, and where links lead."""

from pathlib import Path

import pytest

from kquant_cli.files.safe_names import leads_outside, stays_inside

WITHIN = ["a", "a/b.txt", ".gitattributes", "a..b/c..", "./a", "caf\udce9.txt", "a b:c", "größe", "console", "a" * 255]
OUTSIDE = [
    *(
        "",
        ".",
        "./",
        "..",
        "...",
        "/",
        "a\0b",
        "C:",
        "C:/",
        "C:x",
        "c:\\x",
        "\\x",
        "a\\b",
        "\\\\host\\share\\x",
        "//a/b",
    ),
    *("../x", "a/../b", "a/..", "/etc/passwd", ".. /x", "a/. ./b", "NUL", "a/con.txt", "lpt1", "\ud800"),
    *("a\x1b[2Jb", "a\rb", "a\nb", "a\x7f", "a\x9bb", "a\u202eb", "a\u2066b", "a" * 256, "a/" * 600 + "b"),
    *(None, 3, ["a"]),
]


@pytest.mark.parametrize("name", WITHIN)
def test_names_within(name: str) -> None:
    assert stays_inside(name)


@pytest.mark.parametrize("name", OUTSIDE)
def test_names_of_no_file_within(name: object) -> None:
    assert not stays_inside(name)


def test_links_that_lead_out_of_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    for place in (tmp_path / "secret", folder / "own"):
        place.write_text("x")
    (folder / "out").symlink_to(tmp_path / "secret")
    (folder / "over").symlink_to("../secret")
    (folder / "in").symlink_to("own")
    (folder / "loop").symlink_to("loop")
    (folder / "away").symlink_to(tmp_path)
    (folder / "sub" / "in").symlink_to("../own")
    (tmp_path / "link").symlink_to(folder)
    for base in (folder, tmp_path / "link"):
        for name in ("own", "in", "sub/in", "missing"):
            assert not leads_outside(base, name), name
        for name in ("out", "over", "away/secret", "loop"):
            assert leads_outside(base, name), name


def test_a_snapshot_of_the_hub_has_its_blobs(tmp_path: Path) -> None:
    model = tmp_path / "models--owner--name"
    snapshot = model / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for folder in (model / "blobs", tmp_path / "models--owner--other" / "blobs"):
        folder.mkdir(parents=True)
        (folder / "123").write_text("x")
    (snapshot / "own").symlink_to("../../blobs/123")
    (snapshot / "other").symlink_to("../../../models--owner--other/blobs/123")
    assert not leads_outside(snapshot, "own")
    assert leads_outside(snapshot, "other")
