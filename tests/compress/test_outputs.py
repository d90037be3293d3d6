"""Outputs of whole runs: two at a time, foreign files in their way, and what is refused before any work."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from kquant_cli.bundle import decompress, keep_result, open_bundle, write_dense
from kquant_cli.calibration import statistics_path
from kquant_cli.calibration.session import text_path
from kquant_cli.checkpoint import open_checkpoint
from kquant_cli.compress import identity, kept_files, pipeline
from kquant_cli.compress.plan import make_plan
from kquant_cli.config import CompressConfig
from kquant_cli.errors import KQuantError

QUICK = ("--encoder", "uniform", "--calibration", "none", "--bits", "3")
COMMAND = (sys.executable, "-m", "kquant_cli")
RESULT = {"task": "demo", "protocol": "gptq", "sentence": "x", "metrics": {}, "counts": {}}


def compress(source: Path, out: Path, overwrite: bool = False, **settings: object) -> bool:
    values = {"encoder": "uniform", "calibration": "none", "bits": 3, **settings}
    return pipeline.compress(make_plan(open_checkpoint(source), CompressConfig(**values)), out, overwrite=overwrite)


def tree(folder: Path) -> dict[str, bytes]:
    found = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    return {name: content for name, content in found.items() if not name.endswith("run.json")}


def test_while_one_runs_the_other_is_told(tiny_llama, tmp_path, kquant):
    whole = compress(tiny_llama, tmp_path / "whole") and tree(tmp_path / "whole")
    plan = make_plan(open_checkpoint(tiny_llama), CompressConfig(encoder="uniform", calibration="none", bits=3))
    told = []

    def second(_: object) -> None:
        if not told:
            for command in (
                ("compress", tiny_llama, *QUICK),
                ("compress", tiny_llama, *QUICK, "--overwrite"),
                ("compress", tiny_llama, *QUICK, "--dry-run"),
                ("decompress", tmp_path / "whole"),
            ):
                told.append(kquant(*command, "-o", tmp_path / "b"))

    assert pipeline.compress(plan, tmp_path / "b", progress=second)
    assert [one.code for one in told] == [2] * 4
    for one in told:
        assert f"is being written by process {os.getpid()} on " in one.err
        assert one.err.count("\n") == 1
    assert tree(tmp_path / "b") == whole
    assert "already there" in kquant("compress", tiny_llama, *QUICK, "-o", tmp_path / "b").err


def test_pairs_of_processes(tiny_llama, tmp_path):
    """Two at once, with other settings: one makes its bundle whole, and the other is told, or finds it there."""
    for number, pair in enumerate((("2", "3"), ("3", "3"))):
        out = tmp_path / str(number) / "b"
        commands = [[*COMMAND, "compress", tiny_llama, *QUICK[:-1], bits, "-o", out] for bits in pair]
        processes = [subprocess.Popen(c, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for c in commands]
        ends = [(p.communicate()[1], p.returncode) for p in processes]
        assert 0 in [code for _, code in ends], ends
        for error, code in ends:
            assert code == 0 or (code == 2 and ("is being written by process" in error or "--overwrite" in error)), (
                error
            )
        open_bundle(out)
        assert [path.name for path in out.parent.iterdir()] == ["b"]


@pytest.mark.parametrize("what", ["file", "folder", "link", "link to a folder", "result", "kept name"])
def test_foreign_files_stop_overwriting(tiny_llama, tmp_path, what):
    out = tmp_path / "b"
    compress(tiny_llama, out)
    keep_result(out, RESULT)
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "thesis.tex").write_text("x")
    if what == "file":
        (out / "thesis.tex").write_text("x")
    elif what == "folder":
        (out / "notes").mkdir()
        (out / "notes" / "thesis.tex").write_text("x")
    elif what == "link":
        (out / "thesis.tex").symlink_to(tmp_path / "else" / "thesis.tex")
    elif what == "link to a folder":
        (out / "thesis.tex").symlink_to(tmp_path / "else")
    elif what == "result":
        (out / "results" / "thesis.tex.json").write_text("{}")
    else:
        (out / "run.json").unlink()
        (out / "run.json").symlink_to(tmp_path / "else" / "thesis.tex")
    before = tree(tmp_path)
    with pytest.raises(KQuantError, match=r"--overwrite would remove: .*(thesis\.tex|run\.json)"):
        compress(tiny_llama, out, overwrite=True, bits=2)
    assert tree(tmp_path) == before


def test_results_of_a_bundle_go_with_it(tiny_llama, tmp_path):
    compress(tiny_llama, tmp_path / "b")
    keep_result(tmp_path / "b", RESULT)
    compress(tiny_llama, tmp_path / "b", overwrite=True, bits=2)
    assert not (tmp_path / "b" / "results").exists()


def test_a_result_that_comes_while_the_bundle_is_away_makes_no_folder_in_its_place(tiny_llama, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    compress(tiny_llama, tmp_path / "b")
    (tmp_path / "b").rename(tmp_path / "away")
    assert keep_result(tmp_path / "b", RESULT).is_relative_to("results")
    assert not (tmp_path / "b").exists()


def test_what_appears_in_the_place_during_a_run_stays(tiny_llama, tmp_path):
    plan = make_plan(open_checkpoint(tiny_llama), CompressConfig(encoder="uniform", calibration="none"))

    def other(_: object) -> None:
        (tmp_path / "b").mkdir(exist_ok=True)
        (tmp_path / "b" / "thesis.tex").write_text("x")

    for overwrite in (False, True):
        with pytest.raises(KQuantError, match="made by another"):
            pipeline.compress(plan, tmp_path / "b", progress=other, overwrite=overwrite)
        assert tree(tmp_path / "b") == {"thesis.tex": b"x"}
        (tmp_path / "b" / "thesis.tex").unlink()


@pytest.mark.parametrize("ending", kept_files.ENDINGS)
@pytest.mark.parametrize("what", ["file", "link"])
def test_what_is_not_kept_by_kquant_beside_the_output_stays(tiny_llama, tmp_path, ending, what):
    file = tmp_path / f"b{ending}"
    (tmp_path / "thesis.tex").write_text("x")
    if what == "file":
        file.write_text("x")
    else:
        file.symlink_to(tmp_path / "thesis.tex")
    with pytest.raises(KQuantError, match="is not what kquant keeps under that name"):
        compress(tiny_llama, tmp_path / "b", calibration="random", encoder="annealed")
    assert (tmp_path / "thesis.tex").read_text() == file.read_text() == "x"
    assert {p.name for p in tmp_path.iterdir()} == {"thesis.tex", file.name}


def test_kept_files_have_the_names_that_preparation_gives_them(tmp_path):
    out = tmp_path / "b"
    assert (text_path(out).name, statistics_path(out).name) == (f"b{kept_files.TEXT}", f"b{kept_files.STATISTICS}")


def test_kept_files_are_kept_by_every_end(tiny_llama, tmp_path, kquant):
    """A dry run, one that is interrupted after measuring, the next that takes it; an average measures both."""
    settings = {"encoder": "annealed", "effort": "fast", "calibration": "random", "bits": 2.5}
    names = {f"b{ending}" for ending in (kept_files.STATISTICS, kept_files.SENSITIVITY)}
    plan = make_plan(open_checkpoint(tiny_llama), CompressConfig(**settings))
    with pipeline.rehearse(plan, tmp_path / "b") as (same, inside):
        pipeline.prepare(same, inside, identity.content_hash(plan.checkpoint), device="cpu")
    assert {p.name for p in tmp_path.iterdir()} == names
    before = {name: (tmp_path / name).stat().st_mtime_ns for name in names}

    def stop(_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipeline.compress(plan, tmp_path / "b", progress=stop)
    assert {p.name for p in tmp_path.iterdir()} == names | {"b.part"}
    said = []
    assert pipeline.compress(plan, tmp_path / "b", say=said.append)
    assert not any("measured again" in line for line in said)
    assert {name: (tmp_path / name).stat().st_mtime_ns for name in names} == before
    assert {p.name for p in tmp_path.iterdir()} == names | {"b"}


def test_a_dry_run_refuses_what_the_run_would(tiny_llama, tmp_path, kquant, monkeypatch):
    monkeypatch.chdir(tmp_path)
    compress(tiny_llama, tmp_path / "b", bits=2)
    compress(tiny_llama, tmp_path / "c")
    (tmp_path / "c" / "thesis.tex").write_text("x")
    (tmp_path / "file").write_text("x")
    (tmp_path / "d.part").mkdir()
    (tmp_path / "d.part" / "thesis.tex").write_text("x")
    before = tree(tmp_path)
    places = [("/",), (".",), ("file",), ("file/b",), ("b",), ("c", "--overwrite"), ("d",), ("x" * 250,), ("a\x1bb",)]
    for place in places:
        run, dry = (kquant("compress", tiny_llama, *QUICK, "-o", *place, *more) for more in ((), ("--dry-run",)))
        assert (run.code, dry.code) == (2, 2), place
        assert run.err == dry.err, place
        assert run.err.count("\n") == 1
    for place in (("c",), ("new/folder/b",), ("b", "--overwrite")):
        assert kquant("compress", tiny_llama, *QUICK, "-o", *place, "--dry-run").code == 0
    assert tree(tmp_path) == before
    assert not (tmp_path / "new").exists()


def test_an_output_that_cannot_be_written_is_found_before_the_statistics(tiny_llama, tmp_path, monkeypatch):
    def never(*_: object, **__: object) -> None:
        raise AssertionError("measured first")

    monkeypatch.setattr(pipeline, "prepare", never)
    monkeypatch.setattr(identity, "content_hash", never)
    for out in ("/proc/b", "/sys/b"):
        with pytest.raises(KQuantError, match=f"{out}: cannot be written"):
            compress(tiny_llama, Path(out), calibration="random", encoder="annealed")


def test_a_finished_bundle_is_found_where_nothing_can_be_written(tiny_llama, tmp_path, monkeypatch):
    compress(tiny_llama, tmp_path / "b")
    mkdir = Path.mkdir

    def denied(self: Path, *args: object, **kwargs: object) -> None:
        if self.name.endswith(".part"):
            raise PermissionError(13, "Permission denied")
        mkdir(self, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "mkdir", denied)
    assert compress(tiny_llama, tmp_path / "b") is False
    with pytest.raises(KQuantError, match="give --overwrite"):
        compress(tiny_llama, tmp_path / "b", bits=2)
    with pytest.raises(KQuantError, match="cannot be written"):
        compress(tiny_llama, tmp_path / "b", bits=2, overwrite=True)


def test_decompress_finds_what_it_wrote_and_replaces_no_more(tiny_llama, tmp_path):
    compress(tiny_llama, tmp_path / "b")
    bundle, out, said = open_bundle(tmp_path / "b"), tmp_path / "dense", []
    total = write_dense(bundle, out)
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    assert write_dense(bundle, out, say=said.append) == total
    assert "already there" in said[0]
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*")} == before
    with pytest.raises(KQuantError, match="exists already"):
        write_dense(bundle, out, torch.float16)
    (out / "thesis.tex").write_text("x")
    with pytest.raises(KQuantError, match=r"would remove: thesis\.tex"):
        write_dense(bundle, out, torch.float16, overwrite=True)
    (out / "thesis.tex").unlink()
    shard = next(out.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    with pytest.raises(KQuantError, match="exists already"):
        write_dense(bundle, out)
    write_dense(bundle, out, torch.float16, overwrite=True)
    facts = json.loads((out / decompress.PROVENANCE).read_text())
    assert set(facts["files"]) == {p.name for p in out.iterdir()} - {decompress.PROVENANCE}
    assert {p.name for p in tmp_path.iterdir()} == {"b", "dense"}


def test_a_decompressing_process_that_is_killed_leaves_nothing_for_long(tiny_llama, tmp_path, kquant):
    compress(tiny_llama, tmp_path / "b")
    code = "import time; from kquant_cli.bundle import decompress; from kquant_cli.cli import main\n"
    code += "decompress.put_in_place = lambda *_: (print('there', flush=True), time.sleep(60))\n"
    code += f"main(['decompress', {str(tmp_path / 'b')!r}, '-o', {str(tmp_path / 'd')!r}])"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "there\n"
        held = kquant("decompress", tmp_path / "b", "-o", tmp_path / "d")
        assert (held.code, f"by process {process.pid} " in held.err) == (2, True)
        process.kill()
    began = time.monotonic()
    assert kquant("decompress", tmp_path / "b", "-o", tmp_path / "d").code == 0
    assert time.monotonic() - began < 30
    assert {p.name for p in tmp_path.iterdir()} == {"b", "d"}
