"""`verify_bundle` finds every fault, not only the first, in whole bundles of all formats none."""

import json
import shutil
from hashlib import sha256
from pathlib import Path
from zipfile import ZipFile

import pytest
from safetensors.torch import load_file, save_file
from small_bundles import bundle_of

from kquant_cli.bundle.verify import verify_bundle
from kquant_cli.errors import KQuantError

SHARD, INDEX = "model-00001-of-00001.safetensors", "model.safetensors.index.json"
MATRIX = "model.layers.0.mlp.up_proj"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Codes of three levels, so that there are bytes that are none."""
    return bundle_of("llama", tmp_path_factory.mktemp("verify"), levels=3, calibration="random")


@pytest.fixture
def bundle(whole, tmp_path):
    return Path(shutil.copytree(whole, tmp_path / "bundle"))


def problems(bundle, **options):
    return [(fault.name, fault.sentence) for fault in verify_bundle(bundle, **options).faults]


def change_manifest(bundle, change):
    manifest = json.loads((bundle / "kquant.json").read_text())
    change(manifest)
    (bundle / "kquant.json").write_text(json.dumps(manifest))


def accept(bundle, *names):
    """Give the manifest what the files now are: what is wrong must be found in them."""
    for name in names:
        data = (bundle / name).read_bytes()
        facts = {"size": len(data), "sha256": sha256(data).hexdigest()}
        change_manifest(bundle, lambda m, name=name, facts=facts: m["files"].update({name: facts}))


def change_tensors(bundle, change):
    tensors = load_file(bundle / SHARD)
    change(tensors)
    save_file(tensors, bundle / SHARD, metadata={"format": "pt"})
    accept(bundle, SHARD)


def test_a_whole_bundle_is_right(bundle):
    told = []
    found = verify_bundle(bundle, deep=True, told=lambda *step: told.append(step))
    assert found.faults == ()
    assert (found.files, found.matrices) == (len(json.loads((bundle / "kquant.json").read_text())["files"]), 14)
    assert {what for what, _, _ in told} == {"bytes of files", "bytes of tensors", "matrices decoded"}
    for what in {what for what, _, _ in told}:
        steps = [(done, total) for name, done, total in told if name == what]
        assert steps[-1][0] == steps[-1][1]
    for name in ("README.md", "run.json", "results/a.json", ".cache/x"):
        (bundle / name).parent.mkdir(exist_ok=True)
        (bundle / name).write_text("{}")
    assert problems(bundle) == []


@pytest.mark.parametrize("version", [2, 3])
def test_bundles_of_older_formats_are_right(version, tmp_path, pytestconfig):
    with ZipFile(pytestconfig.rootpath / "tests" / "bundle" / f"version_{version}.zip") as file:
        file.extractall(tmp_path)
    assert problems(tmp_path / f"version-{version}", deep=True) == []


@pytest.mark.parametrize(("arch", "settings"), [("gpt2", {}), ("llama", {"encoder": "uniform", "group_size": 16}),
                                               ("bert_classifier", {"encoder": "greedy"})])  # fmt: skip
def test_other_encoders_and_transposed_matrices_are_right(arch, settings, tmp_path):
    assert problems(bundle_of(arch, tmp_path, **settings), deep=True) == []


def test_all_faults_are_found(bundle):
    (bundle / "generation_config.json").write_text("{}")
    (bundle / "model.safetensors").write_bytes(b"x")
    (bundle / "sub").mkdir()
    (bundle / "sub" / "left-over.txt").write_text("x")
    (bundle / "away").symlink_to("/etc")
    data = bytearray((bundle / SHARD).read_bytes())
    data[-1] ^= 1
    (bundle / SHARD).write_bytes(data)
    change_manifest(bundle, lambda m: (m["matrices"][MATRIX].update(levels=4), m["totals"].update(bytes=3)))
    found = dict(problems(bundle))
    assert "bytes, expected" in found["generation_config.json"]
    assert "SHA-256" in found[SHARD]
    assert "holds weights" in found["model.safetensors"]
    assert "is no part of the bundle" in found["sub/left-over.txt"]
    assert "is no part of the bundle" in found["away"]
    assert f"records levels 4 of '{MATRIX}', where it has 3" in found[MATRIX]
    assert "totals.bytes is 3" in found["kquant.json"]
    assert len(found) == 7


def codes(tensors):
    tensors[f"{MATRIX}.weight_codes"][0, 0] = 243  # three levels: five codes are below 3^5 = 243


def not_finite(name):
    def change(tensors):
        tensors[name].view(-1)[0] = float("nan")

    return change


def zero_scale(tensors):
    name = min(name for name in tensors if name.endswith("weight_channel_scale"))
    tensors[name][0] = 0


@pytest.mark.parametrize(
    ("change", "name", "sentence"),
    [
        (codes, f"{MATRIX}.weight_codes", "has 1 words of codes beyond the 3 levels of its codebook"),
        (not_finite(f"{MATRIX}.weight_scale"), f"{MATRIX}.weight_scale", "has entries that are not finite"),
        (not_finite("model.norm.weight"), "model.norm.weight", "has entries that are not finite"),
        (zero_scale, None, "has entries of 0, by which decoding divides"),
    ],
)
def test_what_is_in_the_tensors(bundle, change, name, sentence):
    change_tensors(bundle, change)
    ((found, what),) = problems(bundle)
    assert sentence in what
    assert name is None or found == name


@pytest.mark.parametrize(("value", "faults"), [(float("-inf"), 0), (float("nan"), 1)])
def test_what_is_no_weight_may_be_infinite(tmp_path, value, faults):
    """A mask, or a bias that forbids a token; compression keeps them."""
    bundle = bundle_of("opt", tmp_path, levels=3, calibration="none")

    def change(tensors):
        tensors["model.decoder.final_layer_norm.bias"][0] = value

    change_tensors(bundle, change)
    assert len(problems(bundle)) == faults


def test_deep_looks_at_what_comes_out(bundle):
    def zero(tensors):
        tensors[f"{MATRIX}.weight_scale"].zero_()

    change_tensors(bundle, zero)
    assert problems(bundle) == []
    ((name, what),) = problems(bundle, deep=True)
    assert name == MATRIX
    assert "decodes to zeros" in what


@pytest.mark.parametrize(
    ("change", "name", "sentence"),
    [
        (lambda m: m.pop("matrices"), "kquant.json", "says nothing of the matrices"),
        (lambda m: m["matrices"].pop(MATRIX), MATRIX, "which is encoded"),
        (lambda m: m["matrices"][MATRIX].update(relative_error=-1), MATRIX, "relative error -1"),
        (lambda m: m["matrices"][MATRIX].update(relative_error=None), MATRIX, "relative error None"),
        (lambda m: m["matrices"][MATRIX].update(bytes=7), MATRIX, "records bytes 7"),
        (lambda m: m["matrices"][MATRIX].update(outcome="kept"), MATRIX, "as 'kept', which the tensors are not"),
        (lambda m: m["matrices"].update(x=m["matrices"][MATRIX]), "x", "records 'x' as 'encoded'"),
        (lambda m: m.update(tied={"a": "b"}), "a", "ties 'a' to 'b', which is not stored"),
        (lambda m: m.update(tied={"model.norm.weight": "b"}), "model.norm.weight", "which is stored itself"),
        (lambda m: m.update(files=[]), "kquant.json", "has no list of files"),
        (lambda m: m["files"].update({"../x": {"size": 1, "sha256": ""}}), "kquant.json", "names '../x' in files"),
    ],
)
def test_what_the_manifest_says(bundle, change, name, sentence):
    change_manifest(bundle, change)
    assert any(found == name and sentence in what for found, what in problems(bundle))


@pytest.mark.parametrize(
    ("damage", "name"),
    [
        (lambda b: (b / "config.json").write_text("{"), "config.json"),
        (lambda b: (b / "config.json").unlink(), "config.json"),
        (lambda b: (b / "kquant.json").write_text("{"), "kquant.json"),
        (lambda b: (b / "kquant.json").unlink(), "kquant.json"),
        (lambda b: (b / INDEX).write_text("[]"), INDEX),
        (lambda b: (b / SHARD).unlink(), SHARD),
        (lambda b: (b / SHARD).write_bytes(b"x" * 100), SHARD),
    ],
)
def test_damage_that_leaves_little_to_look_at_is_a_fault(bundle, damage, name):
    damage(bundle)
    assert name in [found for found, _ in problems(bundle, deep=True)]


def test_what_cannot_be_checked_is_said(bundle, tiny_llama, tmp_path):
    for folder in (tiny_llama, tmp_path / "nowhere"):
        with pytest.raises(KQuantError, match="is not a kquant bundle"):
            verify_bundle(folder)
    text = (bundle / "config.json").read_text()
    (bundle / "config.json").write_text(text.replace('"format_version": 4', '"format_version": 99'))
    with pytest.raises(KQuantError, match="has format 99"):
        verify_bundle(bundle)
    (bundle / "config.json").write_text(text.replace('"format_version": 4', '"format_version": 4, "resaved": true'))
    (bundle / "kquant.json").unlink()
    with pytest.raises(KQuantError, match=r"was written by save_pretrained, which writes no kquant\.json"):
        verify_bundle(bundle)
