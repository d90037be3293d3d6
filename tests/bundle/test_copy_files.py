"""Copying a source's other files: plain files alone, as they were when they were hashed, and none from elsewhere."""

import os
import shutil
from hashlib import sha256
from pathlib import Path

import pytest

from kquant_cli.bundle.writer import PIECE, copy_files
from kquant_cli.errors import KQuantError


@pytest.fixture
def folders(tmp_path) -> tuple[Path, Path]:
    source, folder = tmp_path / "source", tmp_path / "copy"
    source.mkdir()
    folder.mkdir()
    return source, folder


def test_what_is_copied_is_told_with_its_digest(folders):
    source, folder = folders
    content = {"a.json": b"{}", "sub/b.bin": bytes(range(256)) * (PIECE // 128), "empty": b""}
    for name, data in content.items():
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_bytes(data)
    written = copy_files(source, map(Path, content), folder, {})
    assert written == {name: sha256(data).hexdigest() for name, data in content.items()}
    assert {name: (folder / name).read_bytes() for name in content} == content


def test_names_that_a_bundle_has_itself_are_left_out(folders):
    source, folder = folders
    (source / "run.json").write_text("{}")
    assert copy_files(source, [Path("run.json")], folder, {}) == {}
    assert list(folder.iterdir()) == []


def test_other_content_is_refused(folders):
    source, folder = folders
    (source / "a").write_text("a")
    with pytest.raises(KQuantError, match=r"source/a has changed since it was read"):
        copy_files(source, [Path("a")], folder, {"a": "0" * 64})


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes")
@pytest.mark.parametrize("follow", [True, False])
@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "nothing"])
def test_what_is_no_plain_file_is_refused_at_once(folders, kind, follow):
    source, folder = folders
    make = {
        "pipe": os.mkfifo,
        "device": lambda path: path.symlink_to("/dev/zero"),
        "folder": Path.mkdir,
        "nothing": lambda path: None,
    }
    make[kind](source / "a")
    with pytest.raises(KQuantError, match=r"is no plain file|lies outside|cannot read .*(No such file|Is a directory)"):
        copy_files(source, [Path("a")], folder, {}, follow=follow)


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "link"])
def test_nothing_comes_from_elsewhere(folders, name):
    source, folder = folders
    (source.parent / "secret").write_text("x")
    (source / "link").symlink_to("../secret")
    with pytest.raises(KQuantError, match="lies outside"):
        copy_files(source, [Path(name)], folder, {})
    assert list(folder.iterdir()) == []


def test_decompress_copies_no_link_that_leads_elsewhere(kquant, demo_bundle, tmp_path):
    bundle = shutil.copytree(demo_bundle, tmp_path / "bundle")
    elsewhere = tmp_path / "elsewhere"
    (bundle / "README.md").rename(elsewhere)
    (bundle / "README.md").symlink_to(elsewhere)
    result = kquant("decompress", bundle, "-o", tmp_path / "dense")
    assert result.code == 2
    assert f"{bundle / 'README.md'}: is a link that leads out of the bundle" in result.err
    assert not (tmp_path / "dense").exists()
