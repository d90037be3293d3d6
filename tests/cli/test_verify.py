"""`kquant verify`: a verdict, all that is wrong, and an exit code."""

import json
import shutil
from pathlib import Path

import pytest

SHARD = "model-00001-of-00001.safetensors"


@pytest.fixture
def bundle(demo_bundle, tmp_path):
    return Path(shutil.copytree(demo_bundle, tmp_path / "bundle"))


def test_a_bundle_that_is_right(bundle, opt, kquant, tmp_path, read):
    done = kquant("verify", bundle, "--deep", "--source", opt, "--json", tmp_path / "x.json")
    assert (done.code, done.err) == (0, "")
    (line,) = done.out.splitlines()
    assert line.startswith(f"{bundle}: right (")
    assert line.endswith(f"encoded matrices, decoded, compared with {opt})")
    values = read(tmp_path / "x.json")
    assert (values["right"], values["faults"], values["deep"]) == (True, [], True)
    assert values["matrices"] == len(json.loads((bundle / "config.json").read_text())["quantization_config"]["modules"])


def test_all_that_is_wrong(bundle, kquant, tmp_path, read):
    (bundle / "model.safetensors").write_bytes(b"x")
    (bundle / "[bold]x[dim]\x1b[2J").write_bytes(b"x")
    with (bundle / SHARD).open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\xff")
    done = kquant("verify", bundle, "--json", tmp_path / "x.json")
    assert done.code == 1
    assert f"{bundle}: 3 faults (" in done.out
    assert "[bold]x[dim]\ufffd[2J" in done.out
    assert "\x1b" not in done.out
    values = read(tmp_path / "x.json")
    assert values["right"] is False
    assert {fault["name"] for fault in values["faults"]} == {"model.safetensors", "[bold]x[dim]\x1b[2J", SHARD}
    assert all(fault["problem"].startswith(str(bundle)) for fault in values["faults"])


def test_what_cannot_be_checked(bundle, kquant, tmp_path):
    for arguments, sentence in (
        ((tmp_path / "nowhere",), "is not a kquant bundle"),
        ((bundle, "--revision", "main"), "--revision is that of a --source"),
        ((bundle, "--source", tmp_path / "nowhere"), "there is no folder"),
        ((bundle, "--deeper"), "No such option"),
    ):
        done = kquant("verify", *arguments)
        assert done.code == 2
        assert sentence in done.err


def test_progress_where_there_is_no_terminal(bundle, kquant, monkeypatch):
    monkeypatch.setattr("kquant_cli.cli.stages.LINE_SECONDS", 0.0)
    assert "bytes of tensors: " in kquant("verify", bundle).err


def test_inspect_compares_digests_where_it_is_asked_to(bundle, kquant):
    with (bundle / SHARD).open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\xff")
    assert kquant("inspect", bundle).code == 0
    done = kquant("inspect", bundle, "--verify")
    assert done.code == 2
    assert "SHA-256" in done.err
