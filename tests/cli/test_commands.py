"""The commands as a user types them: compress, decompress, inspect, and their mistakes."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
import tiny_models
import torch
import transformers
from safetensors.torch import load_file

import kquant_cli
from kquant_cli.bundle import open_bundle
from kquant_cli.config import all_settings

KQUANT = (sys.executable, "-m", "kquant_cli")
PAPER = ("--encoder", "greedy", "--calibration", "none")
QUICK = (*PAPER, "--max-iter", 8, "--bits", 3)


@pytest.fixture
def bundle(kquant, tiny_llama, tmp_path):
    assert kquant("compress", tiny_llama, "-o", tmp_path / "b", *QUICK).code == 0
    return tmp_path / "b"


def test_compress_says_what_it_did(kquant, tiny_llama, tmp_path):
    result = kquant("compress", tiny_llama, "-o", tmp_path / "b", *QUICK, "--json", tmp_path / "s.json")
    assert result.code == 0
    summary = json.loads((tmp_path / "s.json").read_text())
    assert f"{summary['encoded_share']:.1%}" in result.out
    assert f"{summary['bits_per_weight']:.3f}" in result.out
    assert f"{summary['bits_per_weight_model']:.3f}" in result.out
    assert "14 of 14 layers" in result.out  # not converged in 8 steps
    assert result.err.count("8 iterations (not converged)") == 14
    assert "M weights/s" in result.err


def test_default_output_and_newest(kquant, tiny_llama, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert kquant("inspect").code == 2
    assert kquant("compress", tiny_llama, *QUICK).code == 0
    assert (tmp_path / "bundles" / "tiny-llama-greedy-3bit" / "kquant.json").exists()
    shown = kquant("inspect")
    assert shown.code == 0
    assert "inspecting bundles/tiny-llama-greedy-3bit, the newest bundle" in shown.err


PAPERS = {
    "encoder": "greedy", "calibration": "none", "bits": 2, "basis": "butterfly", "basis_count": 2,
    "rule": "alternating", "form": "vector", "max_iter": 7, "tol": 0.001, "init": "peaks", "restarts": 2,
    "kmeans_iter": 40, "kmeans_tol": 1e-5, "group_size": 64, "seed": 9,
    "include": ["lm_head.weight"], "exclude": ["*.q_proj*"], "on_no_convergence": "uniform:5",
}  # fmt: skip
OURS = {
    "encoder": "annealed",
    "levels": 6,
    "effort": "fast",
    "codebook": "product",
    "side": "output",
    "calibration": "random",
}
AVERAGE = {"bits": 2.5, "head_bits": 6, "effort": "fast", "calibration": "random", "equal_fused": False}
CALIBRATED = {"levels": 3, "effort": "fast", "calibration": "own", "calibration_tokens": 256, "tune_steps": 1}
MINUTES = {"bits": 2, "effort": "fast", "calibration": "auto", "calibration_tokens": 256, "tune_minutes": 0.0}


@pytest.mark.parametrize(
    "flags", [PAPERS, OURS, AVERAGE, CALIBRATED, MINUTES], ids=["paper", "ours", "average", "calibrated", "minutes"]
)
def test_every_setting_reaches_the_bundle(kquant, tiny_llama, tmp_path, flags):
    args = []
    for key, value in flags.items():
        option = key.replace("_", "-")
        for item in value if isinstance(value, list) else [value]:
            args += [f"--{option}" if item else f"--no-{option}"] if isinstance(item, bool) else [f"--{option}", item]
    assert kquant("compress", tiny_llama, "-o", tmp_path / "b", *args).code == 0
    settings = json.loads((tmp_path / "b" / "kquant.json").read_text())["settings"]
    assert {key: settings[key] for key in flags} == flags


def test_every_setting_has_a_flag():
    known = set(all_settings()) - {"layers"}  # rules are for a file
    assert known == set().union(PAPERS, OURS, AVERAGE, CALIBRATED, MINUTES, ["copy_files"])


def test_flags_override_the_file(kquant, tiny_llama, tmp_path):
    (tmp_path / "c.yaml").write_text("bits: 5\nmax_iter: 4\n")
    args = ("-o", tmp_path / "b", "--config", tmp_path / "c.yaml", *PAPER, "--bits", 2)
    assert kquant("compress", tiny_llama, *args).code == 0
    settings = json.loads((tmp_path / "b" / "kquant.json").read_text())["settings"]
    assert (settings["bits"], settings["max_iter"]) == (2, 4)


def test_dry_run_writes_nothing_and_is_right(kquant, tiny_llama, tmp_path):
    plan = kquant("compress", tiny_llama, "-o", tmp_path / "b", *QUICK, "--dry-run", "--json", tmp_path / "plan.json")
    assert plan.code == 0
    assert [p.name for p in tmp_path.iterdir()] == ["plan.json"]
    estimated = json.loads((tmp_path / "plan.json").read_text())["estimated_bytes"]
    assert kquant("compress", tiny_llama, "-o", tmp_path / "b", *QUICK).code == 0
    tensors = load_file(tmp_path / "b" / "model-00001-of-00001.safetensors")
    assert estimated == sum(t.numel() * t.element_size() for t in tensors.values())


def test_dry_run_says_what_channel_scales_may_add(kquant, tiny_llama, tmp_path):
    """Which layers share an input, and so a scale, is known only after measuring: the plan gives both ends."""
    args = ("compress", tiny_llama, "-o", tmp_path / "b", "--effort", "fast", "--calibration", "random")
    plan = kquant(*args, "--dry-run", "--json", tmp_path / "plan.json")
    values = json.loads((tmp_path / "plan.json").read_text())
    assert "MB -> about" in plan.out
    assert values["channel_scale_bytes_at_most"] == 2 * sum(layer["shape"][1] for layer in values["layers"])
    assert [p.name for p in tmp_path.iterdir()] == ["plan.json"]
    assert kquant(*args).code == 0
    stored = load_file(tmp_path / "b" / "model-00001-of-00001.safetensors")
    size = sum(t.numel() * t.element_size() for t in stored.values())
    scales = sum(t.numel() * t.element_size() for name, t in stored.items() if name.endswith("channel_scale"))
    assert 0 < scales < values["channel_scale_bytes_at_most"]
    assert size == values["estimated_bytes"] + scales
    assert "about" not in kquant(*args, "--calibration", "none", "--dry-run").out


def test_dry_run_of_an_average_shows_what_each_matrix_gets(kquant, tiny_llama, tmp_path):
    transformers.utils.logging.enable_progress_bar()  # `kquant eval`, run in this process before, has them off
    args = ("compress", tiny_llama, "-o", tmp_path / "b", "--effort", "fast", "--bits", 4.5)
    args += ("--calibration", "random")
    plan = kquant(*args, "--dry-run", "--json", tmp_path / "plan.json")
    assert plan.code == 0
    assert not (tmp_path / "b").exists()
    values = json.loads((tmp_path / "plan.json").read_text())
    assert len({layer["levels"] for layer in values["layers"]}) > 1
    for layer in values["layers"]:
        name = layer["name"].removeprefix("model.layers.")
        row = next(line.split() for line in plan.out.splitlines() if line.split()[:1] == [name])
        assert row[3:] == [str(layer["levels"]), f"{layer['bytes']:,}"]
    assert "bits a weight of 4.5" in plan.out
    assert "about" not in plan.out
    assert "Loading weights" not in plan.err  # the bars of transformers
    done = kquant(*args)
    assert done.code == 0
    assert "statistics of the layers" not in done.err  # they were kept, and so were the sensitivities
    assert "sensitivities of the layers" not in done.err
    bundle = open_bundle(tmp_path / "b")
    assert {name: layout.levels for name, layout in bundle.layouts.items()} == {
        layer["name"]: layer["levels"] for layer in values["layers"]
    }
    assert values["estimated_bytes"] == sum(info.nbytes for info in bundle.infos.values())


def test_inspect_of_an_average(kquant, tiny_llama, tmp_path):
    args = ("compress", tiny_llama, "-o", tmp_path / "b", "--effort", "fast", "--bits", 4.5)
    args += ("--calibration", "random")
    done = kquant(*args)
    assert "bits a weight of 4.5" in done.err  # the plan is printed
    shown = kquant("inspect", tmp_path / "b", "--json", tmp_path / "i.json")
    assert shown.code == 0
    values = json.loads((tmp_path / "i.json").read_text())
    counts = Counter(layer["levels"] for layer in values["layers"])
    for levels, count in counts.items():
        assert f"{count} layer{'s' * (count > 1)} with {levels}" in shown.out
    assert f"{values['bits_per_weight']:.4f} bits of 4.5, by sensitivities on random tokens" in shown.out
    assert "channel scaling" in shown.out
    assert "random tokens, 8 inputs" in shown.out
    assert values["allocation"]["target_bits"] == 4.5
    header = next(line for line in shown.out.splitlines() if line.split()[:1] == ["layer"])
    assert "levels" in header.split()
    for layer in values["layers"]:
        name = layer["name"].removeprefix("model.layers.")
        row = next(line.split() for line in shown.out.splitlines() if line.split()[:1] == [name])
        assert row[2] == str(layer["levels"])


def test_second_run_is_a_no_op(kquant, tiny_llama, bundle):
    again = kquant("compress", tiny_llama, "-o", bundle, *QUICK)
    assert again.code == 0
    assert "nothing to do" in again.err
    other = kquant("compress", tiny_llama, "-o", bundle, *PAPER, "--bits", 2)
    assert other.code == 2
    assert "--overwrite" in other.err
    assert kquant("compress", tiny_llama, "-o", bundle, *PAPER, "--bits", 2, "--overwrite").code == 0


def test_inspect(kquant, bundle, tmp_path):
    shown = kquant("inspect", bundle, "--json", tmp_path / "i.json")
    assert shown.code == 0
    values = json.loads((tmp_path / "i.json").read_text())
    stored = load_file(bundle / "model-00001-of-00001.safetensors")
    ours = {name: t for name, t in stored.items() if ".weight_" in name}
    weights = sum(layer["weights"] for layer in values["layers"])
    size = {True: 0, False: 0}
    for name, tensor in stored.items():
        size[name in ours] += tensor.numel() * tensor.element_size()
    assert values["bits_per_weight"] == pytest.approx(8 * size[True] / weights)
    dense = sum(t.numel() for name, t in stored.items() if name not in ours)
    assert values["bits_per_weight_model"] == pytest.approx(8 * sum(size.values()) / (weights + dense))
    assert values["encoded_share"] == pytest.approx(weights / (weights + dense))
    assert values["ratio"] == pytest.approx(4 * (weights + dense) / sum(size.values()))
    for layer in values["layers"]:
        assert layer["relative_squared_error"] == pytest.approx(layer["relative_error"] ** 2)
        assert len(layer["trace"]) == layer["iterations"] == 8
        assert f"{layer['relative_error']:.4f}" in shown.out
        assert layer["name"].rpartition(".")[2] in shown.out
    assert values["not_converged"] == [layer["name"] for layer in values["layers"]]
    assert re.search(r"channel scaling +none", shown.out)
    assert "levels" not in shown.out  # they are the same for all


def test_inspect_states_the_real_error(kquant, bundle, tiny_llama, tmp_path):
    kquant("inspect", bundle, "--json", tmp_path / "i.json")
    kquant("decompress", bundle, "-o", tmp_path / "dense")
    source, dense = (load_file(next(p.glob("*.safetensors"))) for p in (tiny_llama, tmp_path / "dense"))
    for layer in json.loads((tmp_path / "i.json").read_text())["layers"]:
        weight = source[f"{layer['name']}.weight"]
        error = float((dense[f"{layer['name']}.weight"] - weight).norm() / weight.norm())
        assert layer["relative_error"] == pytest.approx(error, rel=1e-4)


def test_decompress_loads_without_kquant(kquant, bundle, tmp_path):
    dtypes = ("float32", "float16", "bfloat16")
    for dtype in dtypes:
        assert kquant("decompress", bundle, "-o", tmp_path / dtype, "--dtype", dtype).code == 0
    code = (
        "import sys; sys.modules['kquant_cli'] = None; import transformers\n"
        "for folder in sys.argv[1:]: print(transformers.AutoModelForCausalLM.from_pretrained(folder).dtype)"
    )
    command = [sys.executable, "-c", code, *(tmp_path / dtype for dtype in dtypes)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [f"torch.{dtype}" for dtype in dtypes]
    assert "MISSING" not in done.stderr + done.stdout


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (("compress", "{tmp}/nowhere"), "nowhere"),
        (("compress", "{tmp}"), "config.json"),
        (("compress", "some-org/some-model"), "some-org/some-model"),
        (
            ("compress", "{model}", "--bits", "9"),
            "command line: `bits` is 9, expected a number from 1 to 8, whole or, as an average, a fraction",
        ),
        (("compress", "{model}", "--bits", "0"), "`bits` is 0"),
        (("compress", "{model}", "--levels", "300"), "`levels` is 300, expected less than or equal to 256"),
        (("compress", "{model}", "--levels", "6", "--bits", "3"), "`bits` is 3 and `levels` is 6, expected one of"),
        (
            ("compress", "{model}", "--levels", "6", "--init", "peaks", "--encoder", "greedy"),
            "`init: peaks` cannot have 6 levels, expected a power of two",
        ),
        (
            ("compress", "{model}", "--effort", "best", "--encoder", "greedy"),
            "`effort` is not used by the encoder greedy",
        ),
        (("compress", "{model}", "--no-equal-fused"), "`equal_fused` is not used where every matrix has the same bits"),
        (
            ("compress", "{model}", "--tune-steps", "3", "--tune-minutes", "1"),
            "`tune_steps` and `tune_minutes` are both given; expected one of the two",
        ),
        (
            ("compress", "{model}", "--calibration-tokens", "3"),
            "`calibration_tokens` is 3, expected greater than or equal to 4",
        ),
        (("compress", "{model}", "--tune-steps", "-1"), "`tune_steps` is -1, expected greater than or equal to 0"),
        (("compress", "{model}", "--on-no-convergence", "uniform:3.5"), "`on_no_convergence` is 'uniform:3.5'"),
        (
            ("compress", "{model}", "--calibration", "{tmp}/none.txt"),
            "none.txt cannot be read (No such file or directory): expected a UTF-8 text file, or 'random'",
        ),
        (("compress", "{model}", "--calibration", "{tmp}/none.txt", "--dry-run"), "none.txt cannot be read"),
        (
            ("compress", "{model}", "--calibration", "/dev/null"),
            "/dev/null cannot be read (no plain file): expected a UTF-8 text file",
        ),
        (
            ("compress", "{model}", "--bits", "2.5", "--calibration", "{tmp}/none.txt"),
            "none.txt cannot be read (No such file or directory): expected a UTF-8 text file, or 'random'",
        ),
        (
            ("compress", "{model}", "--bits", "2.5", "--calibration", "/dev/null"),
            "/dev/null cannot be read (no plain file): expected",
        ),
        (("compress", "{model}", "--encoder", "gredy"), "did you mean `greedy`?"),
        (("compress", "{model}", "--basis", "hadamrd"), "did you mean `hadamard`"),
        (("compress", "{model}", "--config", "{tmp}/none.yaml"), "none.yaml"),
        (("compress", "{model}", "--device", "tpu"), "'tpu'"),
        (
            ("compress", "{model}", "--encoder", "uniform", "--basis", "qr"),
            "`basis` is not used by the encoder uniform",
        ),
        (("decompress", "{model}", "-o", "{tmp}/d"), "is not a kquant bundle"),
        (("compress", "{model}", "--exclude", "*.q_prj*"), "*.q_prj*"),
        (("decompress", "{tmp}/nowhere", "-o", "{tmp}/d"), "is not a kquant bundle"),
        (("inspect", "{model}"), "is not a kquant bundle"),
    ],
)
def test_mistakes_are_one_sentence_and_exit_2(kquant, tiny_llama, tmp_path, args, sentence):
    result = kquant(
        *(a.format(tmp=tmp_path, model=tiny_llama) for a in args), *(["-o", tmp_path / "b"] * (args[0] == "compress"))
    )
    assert result.code == 2
    assert result.err.startswith("error: ")
    assert sentence in result.err
    assert result.err.count("\n") == 1
    assert "Traceback" not in result.err
    assert list(tmp_path.iterdir()) == []


def test_help_and_version_are_light():
    """No torch, no transformers: `--help` answers at once, but that of `compress`, which asks the encoders.

    Each has an example.
    """
    code = (
        "import sys; from kquant_cli.cli import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'transformers', 'sklearn', 'scipy', 'datasets'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    shown = subprocess.run([*KQUANT, "compress", "--help"], capture_output=True, text=True, check=True).stdout
    for option in ("levels", "effort", "calibration", "calibration-tokens", "tune-minutes", "tune-steps", "side"):
        assert f"--{option} " in shown
    slow = "{'transformers', 'sklearn', 'datasets', 'accelerate'} & set(sys.modules)"
    asked = code.replace("{'torch', 'transformers', 'sklearn', 'scipy', 'datasets'} & set(sys.modules)", slow)
    subprocess.run([sys.executable, "-c", asked, "compress", "--help"], capture_output=True, text=True, check=True)
    for args in ([], ["decompress"], ["inspect"], ["eval"], ["demo"]):
        done = subprocess.run([sys.executable, "-c", code, *args, "--help"], capture_output=True, text=True, check=True)
        assert "Example" in done.stdout
    done = subprocess.run([*KQUANT, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"kquant {kquant_cli.__version__}"


def test_live_display_on_a_terminal(tiny_llama, tmp_path):
    """Through a pseudo-terminal: a bar with layer, shape and rate, and the finished layers above it."""
    command = [*KQUANT, "compress", str(tiny_llama), "-o", str(tmp_path / "b"), "--effort", "fast"]
    command += ["--calibration", "random"]
    leader, follower = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "200"}
    process = subprocess.Popen(command, stdout=follower, stderr=follower, env=environment)
    os.close(follower)
    shown, deadline = b"", time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            part = os.read(leader, 65536)
        except OSError:
            break
        shown += part
    assert process.wait() == 0
    text = shown.decode()
    assert "━" in text
    assert "model.layers.1.self_attn.v_proj" in text
    assert "M weights/s" in text
    assert "statistics of the layers' inputs" in text


def test_interrupt_from_outside_and_go_on(kquant, tmp_path):
    """Ctrl-C in the middle: code 130, no bundle, and the same command finishes it with the finished layers taken up."""
    source = tiny_models.make("llama", tmp_path / "source", num_hidden_layers=4)
    command = ["compress", str(source), "-o", str(tmp_path / "b"), *PAPER, "--tol", "0", "--form", "vector"]
    command += ["--max-iter", "200", "--restarts", "1"]
    listen = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a job in the background ignores it by default
    process = subprocess.Popen([*KQUANT, *command], stderr=subprocess.PIPE, text=True, preexec_fn=listen)  # noqa: PLW1509
    assert process.stderr is not None
    while "iterations" not in process.stderr.readline():  # one layer is finished then
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    rest = process.stderr.read()
    assert process.wait() != 0
    assert "Traceback" not in rest
    assert "the same command goes on" in rest
    assert not (tmp_path / "b").exists()
    done = kquant(*command)
    assert done.code == 0
    assert "resumed from an earlier run" in done.err
    assert (tmp_path / "b" / "kquant.json").exists()


def test_exotic_source_dtype(kquant, tmp_path):
    source = tiny_models.make("llama", tmp_path / "half", save_dtype=torch.bfloat16)
    assert kquant("compress", source, "-o", tmp_path / "b", *QUICK).code == 0
    assert kquant("decompress", tmp_path / "b", "-o", tmp_path / "dense").code == 0
    tensors = load_file(Path(next((tmp_path / "dense").glob("*.safetensors"))))
    assert {t.dtype for t in tensors.values()} == {torch.bfloat16}


def test_decompress_without_space_is_one_sentence(kquant, bundle, tmp_path, monkeypatch):
    import errno

    from kquant_cli.files.safetensors_writer import TensorWriter

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(TensorWriter, "write", full)
    result = kquant("decompress", bundle, "-o", tmp_path / "dense")
    assert result.code == 2
    assert "no space left on the device" in result.err
    assert not (tmp_path / "dense").exists()


def test_output_that_cannot_be(kquant, tiny_llama, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("x")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for out in (".", "file", "file/b", "loop", "x" * 300):
        result = kquant("compress", tiny_llama, "-o", out, *QUICK)
        assert result.code == 2, out
        assert result.err.startswith(f"error: {out}"), out
    assert "would be below a file" in kquant("compress", tiny_llama, "-o", "file/b").err  # before anything is measured
    assert kquant("compress", tiny_llama, "-o", "b", *QUICK, "--json", "").code == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "loop"]
