"""What somebody else laid out is opened only where it is a plain file, and never waited for."""

import os

import pytest

from kquant_cli.errors import KQuantError
from kquant_cli.files.plain_files import leads_outside, open_plain


def test_a_plain_file_is_read_through_a_link(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    (tmp_path / "b").symlink_to("a")
    with open_plain(tmp_path / "b") as file:
        assert file.read() == b"abc"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes")
def test_nothing_else_is(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/zero")
    for name in ("pipe", "device", "."):
        with pytest.raises(KQuantError, match="is no plain file"):
            open_plain(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        open_plain(tmp_path / "none")


def test_where_links_lead(tmp_path):
    folder = tmp_path / "models--a" / "snapshots" / "c0"
    folder.mkdir(parents=True)
    for name in ("blobs", "blobs2"):
        (tmp_path / "models--a" / name).mkdir()
    (tmp_path / "models--b" / "blobs").mkdir(parents=True)
    inside = {"plain": None, "blob": "../../blobs/x", "sibling": "plain", "twice": "blob"}
    outside = {
        "near": "../../blobs2/x",
        "other": "../../../models--b/blobs/x",
        "absolute": "/etc/hostname",
        "up": "../c1",
    }
    for name, target in (inside | outside).items():
        (folder / name).write_text("") if target is None else (folder / name).symlink_to(target)
        assert leads_outside(folder / name, folder) == (name in outside), name
    (tmp_path / "link").symlink_to(folder)
    assert not leads_outside(tmp_path / "link" / "blob", tmp_path / "link")
