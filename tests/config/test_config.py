"""Settings: precedence, and a sentence for every kind of mistake."""

import copy
import json
import pickle
from pathlib import Path

import pytest
from pydantic import Field

from kquant_cli.config import CompressConfig, EncoderConfig, all_settings, load_config, settings_of_matrix
from kquant_cli.encoders import ENCODERS, Encoder, EncoderSettings
from kquant_cli.errors import KQuantError

NAMES = list(ENCODERS)
QUOTED = ", ".join(map(repr, NAMES[:-1]))


@pytest.fixture
def configs(pytestconfig):
    return pytestconfig.rootpath / "configs"


@pytest.fixture
def yaml_file(tmp_path):
    def write(text: str) -> Path:
        path = tmp_path / "settings.yaml"
        path.write_text(text)
        return path

    return write


def test_flags_override_yaml_overrides_defaults(yaml_file):
    path = yaml_file("bits: 3\nbasis: qr\n")
    config = load_config(path, {"bits": 6})
    assert (config.bits, config.options.basis, config.options.max_iter) == (6, "qr", 200)


def test_shipped_files(configs):
    assert load_config(configs / "default.yaml") == CompressConfig()
    for name, iterations in (("paper-opt.yaml", 200), ("paper-glue.yaml", 6000)):
        config = load_config(configs / name)
        assert (config.settings.max_iter, config.encoder, config.calibration) == (iterations, "greedy", "none")


def test_layer_rules_the_later_wins(yaml_file):
    path = yaml_file("layers:\n- {match: '*.fc*', bits: 5}\n- {match: '*.fc2', bits: 7, basis: hadamard}\n")
    config = load_config(path)
    assert config.for_matrix("model.0.fc2") == EncoderConfig(bits=7, basis="hadamard")
    assert config.for_matrix("model.0.fc1") == EncoderConfig(bits=5)
    assert config.for_matrix("model.0.q_proj") == EncoderConfig()


def test_head_bits_are_of_an_encoder_of_their_own(yaml_file):
    """Whatever the others are: a rule adds to them, and with bits, levels or an encoder it takes their place."""
    path = yaml_file("encoder: greedy\nlevels: 6\nside: output\nseed: 3\nlayers:\n- {match: '*.b', group_size: 32}\n"
                     "- {match: c, bits: 5}\n- {match: d, encoder: kmeans}\n")  # fmt: skip
    config = load_config(path)
    assert config.for_tokens("a").model_dump() == config.base().model_dump() | {
        "encoder": "uniform", "bits": 8, "levels": None, "group_size": 64}  # fmt: skip
    assert config.for_tokens("a.b").settings.group_size == 32
    assert config.for_tokens("c") is config.for_tokens("d") is None
    below = load_config(path, {"head_bits": 5}).for_tokens("a")
    assert (below.encoder, below.bits, below.levels, below.options.side, below.seed) == (
        "annealed",
        5,
        None,
        "input",
        3,
    )
    assert load_config(path, {"head_bits": 5, "effort": "fast"}).for_tokens("a").settings.effort == "fast"
    with pytest.raises(KQuantError, match="`effort` is not used by the encoder"):
        load_config(path, {"effort": "fast"})


def test_the_size_given_last_counts(yaml_file):
    """Bits and levels say the same thing: a flag or a rule that gives one takes the place of the other."""
    path = yaml_file("levels: 6\nlayers:\n- {match: a, bits: 5}\n- {match: b, levels: 3}\n")
    config = load_config(path)
    assert [config.for_matrix(name).level_count for name in "abc"] == [32, 3, 6]
    assert load_config(path, {"bits": 2}).base().level_count == 4
    assert load_config(yaml_file("bits: 5"), {"levels": 12}).base().level_count == 12
    assert CompressConfig(levels=6, on_no_convergence="uniform:4").fallback(EncoderConfig(levels=6)).level_count == 16
    assert CompressConfig(levels=6, on_no_convergence="uniform").fallback(EncoderConfig(levels=6)).level_count == 6


def test_averages(yaml_file):
    assert load_config(None, {"bits": 3.25}).is_average
    whole = load_config(None, {"bits": 3.0})
    assert not whole.is_average
    assert type(whole.bits) is int  # as the settings in the manifest: 3 and 3.0 are the same run
    config = load_config(yaml_file("bits: 2.5\nlayers:\n- {match: a, bits: 4}\n- {match: b, levels: 3}\n"))
    assert [config.for_matrix(name).is_average for name in "abc"] == [False, False, True]
    with pytest.raises(ValueError, match="average"):
        config.base().level_count  # noqa: B018


def test_exponents_as_people_write_them(yaml_file):
    assert load_config(yaml_file("tol: 1e-6")).options.tol == 1e-6  # YAML 1.1 reads this as text


def test_fallback():
    base = EncoderConfig(bits=6)
    assert CompressConfig(on_no_convergence="uniform:4").fallback(base) == EncoderConfig(encoder="uniform", bits=4)
    assert CompressConfig(on_no_convergence="kmeans").fallback(base) == EncoderConfig(encoder="kmeans", bits=6)
    assert CompressConfig(on_no_convergence="keep").fallback(base) is None


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("bit: 4", "`bit` is not a setting; did you mean `bits`"),
        ("bits: 9", "`bits` is 9, expected a number from 1 to 8, whole or, as an average, a fraction such as 3.25"),
        ("head_bits: 1", "`head_bits` is 1, expected whole bits from 2 to 8, or 16 for dense"),
        ("head_bits: 9", "`head_bits` is 9, expected whole bits from 2 to 8, or 16 for dense"),
        ("head_bits: 3.5", "`head_bits` is 3.5, expected whole bits from 2 to 8, or 16 for dense"),
        ("head_bits: true", "`head_bits` is True, expected whole bits"),
        ("layers:\n- {match: a, head_bits: 4}", "`layers.0.head_bits` is not a setting"),
        ("bits: 0", "`bits` is 0, expected a number from 1 to 8"),
        ("bits: 0.5", "`bits` is 0.5, expected a number from 1 to 8"),
        ("bits: .nan", "`bits` is nan, expected a number from 1 to 8"),
        ("bits: '4'", "`bits` is '4', expected a number from 1 to 8"),
        ("bits: true", "`bits` is True, expected a number from 1 to 8"),
        ("levels: 1", "`levels` is 1, expected greater than or equal to 2"),
        ("levels: 257", "`levels` is 257, expected less than or equal to 256"),
        ("levels: 5.5", "`levels` is 5.5, expected an integer"),
        ("levels: '6'", "`levels` is '6', expected an integer"),
        ("bits: 3\nlevels: 6", "`bits` is 3 and `levels` is 6, expected one of the two"),
        (
            "layers:\n- {match: a, bits: 3, levels: 6}",
            "layers.0: `bits` is 3 and `levels` is 6, expected one of the two",
        ),
        ("layers:\n- {match: a, bits: 3.5}", "`layers.0.bits` is 3.5, expected whole bits"),
        ("bits: 2.5\nlayers:\n- {match: a, bits: 3.5}", "`layers.0.bits` is 3.5, expected whole bits"),
        ("effort: bst", "`effort` is 'bst', expected 'fast', 'balanced' or 'best'; did you mean `best`"),
        ("codebook: rings", "did you mean `ring`?"),
        ("side: output side", "`side` is 'output side', expected 'auto', 'input' or 'output'; did you mean `output`?"),
        ("calibration: 3", "`calibration` is 3, expected a string"),
        ("calibration_tokens: 3", "`calibration_tokens` is 3, expected greater than or equal to 4"),
        ("tune_minutes: -1", "`tune_minutes` is -1, expected greater than or equal to 0"),
        ("tune_steps: 1.5", "`tune_steps` is 1.5, expected an integer"),
        ("equal_fused: 3", "`equal_fused` is 3, expected"),
        ("sensitivity: data-free", "`sensitivity` is not a setting"),
        ("encoder: greedy\ninit: peaks\nlevels: 6", "`init: peaks` cannot have 6 levels, expected a power of two"),
        ("encoder: kmeans\ninit: peaks\nlevels: 12", "`init: peaks` cannot have 12 levels, expected a power of two"),
        (
            "init: peaks\nlayers:\n- {match: a, encoder: greedy, levels: 5}",
            "layers.0: `init: peaks` cannot have 5 levels, expected a power of two",
        ),
        (
            "init: peaks\nlevels: 6\non_no_convergence: kmeans",
            "`on_no_convergence` is 'kmeans': `init: peaks` cannot have 6 levels, expected a power of two",
        ),
        (
            "init: peaks\non_no_convergence: kmeans\nlayers:\n- {match: a, levels: 6}",
            "layers.0: `on_no_convergence` is 'kmeans': `init: peaks` cannot have 6 levels, expected a power of two",
        ),
        ("options: {effort: best}", "`options` is not a setting"),
        ("options:", "`options` is not a setting"),
        ("layers:\n- {match: a, options: {effort: best}}", "`layers.0.options` is not a setting"),
        ("codebook: product\nlevels: 5", "`codebook: product` cannot have 5 levels, expected an even number"),
        (
            "bits: 2.5\non_no_convergence: keep",
            "`on_no_convergence` is 'keep', expected `encode` where `bits` is",
        ),
        (
            "bits: 2.5\non_no_convergence: uniform:4",
            "`on_no_convergence` is 'uniform:4', expected `encode` where",
        ),
        ("tol: small", "`tol` is 'small', expected a number"),
        ("tol: -1", "`tol` is -1, expected greater than or equal to 0"),
        ("max_iter: 0", "`max_iter` is 0"),
        ("basis: dtc", "did you mean `dct`?"),
        (
            "encoder: gredy",
            f"`encoder` is 'gredy', expected {QUOTED} or {NAMES[-1]!r}; did you mean `greedy`?",
        ),
        ("rule: alternate", "did you mean `alternating`?"),
        ("form: rows", "`form` is 'rows', expected 'matrix' or 'vector'"),
        ("init: peak", "did you mean `peaks`?"),
        ("include: lm_head", "`include` is 'lm_head', expected a list"),
        ("layers:\n- {match: a, bitz: 3}", "`layers.0.bitz` is not a setting; did you mean `bits`"),
        ("layers:\n- {match: a, bits: 3}\n- {match: a, bits: 33}", "`layers.1.bits` is 33"),
        ("layers:\n- {bits: 3}", "`layers.0.match` is missing"),
        ("on_no_convergence: kep", "did you mean `keep`?"),
        ("on_no_convergence: uniform:9", "BITS from 1 to 8"),
        (
            "on_no_convergence: uniform:3.5",
            "`on_no_convergence` is 'uniform:3.5', expected `encode`, `keep` or `ENCODER[:BITS]` with ENCODER one of "
            f"{', '.join(NAMES)} and BITS from 1 to 8, whole",
        ),
        ("on_no_convergence: uniform:²", "BITS from 1 to 8"),
        ("1: 2", "`1` is not a setting"),
        ("false", "expected lines of `key: value`, found bool"),
        ("- 1", "expected lines of `key: value`, found list"),
        ("a: [", "not valid YAML at line 1"),
    ],
)
def test_mistakes(yaml_file, text, sentence):
    path = yaml_file(text)
    with pytest.raises(KQuantError) as error:
        load_config(path)
    assert str(error.value).startswith(f"{path}: ")
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_a_flag_is_named_as_such(tmp_path):
    with pytest.raises(KQuantError, match=r"^command line: `bits` is 12"):
        load_config(None, {"bits": 12})
    with pytest.raises(KQuantError, match=r"gone.yaml: cannot be read"):
        load_config(tmp_path / "gone.yaml")


def test_a_flag_that_the_encoder_does_not_read_is_refused():
    with pytest.raises(KQuantError, match="`basis` is not used by the encoder uniform"):
        load_config(None, {"encoder": "uniform", "basis": "qr"})
    with pytest.raises(KQuantError, match="`group_size` is not used by the encoder greedy"):
        load_config(None, {"encoder": "greedy", "group_size": 64})
    with pytest.raises(KQuantError, match=r"`max_iter` is not used by the encoder annealed; .* --encoder greedy"):
        load_config(None, {"max_iter": 64})
    for flag, value in (("effort", "best"), ("codebook", "product"), ("side", "output")):
        with pytest.raises(KQuantError, match=rf"`{flag}` is not used by the encoder greedy; .* --encoder annealed"):
            load_config(None, {"encoder": "greedy", flag: value})
    assert load_config(None, {"group_size": 64, "on_no_convergence": "uniform:4"}).options.group_size == 64


def test_equal_levels_of_fused_matrices_are_for_averages(yaml_file):
    for size in ({}, {"bits": 3}, {"levels": 6}):
        with pytest.raises(KQuantError, match="`equal_fused` is not used where every matrix has the same bits"):
            load_config(None, {"equal_fused": False, **size})
    assert load_config(None, {"equal_fused": False, "bits": 3.5}).equal_fused is False
    assert load_config(yaml_file("equal_fused: false"), {"bits": 3}).bits == 3  # the file may say what is not read


def test_a_tuning_has_steps_or_minutes(yaml_file):
    with pytest.raises(KQuantError, match="`tune_steps` and `tune_minutes` are both given; expected one of the two"):
        load_config(None, {"tune_steps": 3, "tune_minutes": 2.0})
    file = yaml_file("tune_minutes: 7\n")
    assert load_config(file).tune_minutes == 7
    assert load_config(file, {"tune_steps": 3}).tune_steps == 3


def test_the_choices_are_those_of_the_registries():
    from kquant_cli.bases import BASES
    from kquant_cli.decomposition import RULES

    settings = all_settings()
    assert settings["encoder"].choices == list(ENCODERS)
    assert settings["basis"].choices == list(BASES)
    assert settings["rule"].choices == list(RULES)
    assert all(encoder.name in settings["encoder"].description for encoder in ENCODERS.values())


def test_a_manifest_has_all_settings_side_by_side():
    written = CompressConfig(effort="best", basis="qr", layers=[{"match": "a", "bits": 3}]).model_dump(mode="json")
    assert list(written) == [key for key in all_settings() if key != "copy_files"], "which is there where it is given"
    assert list(CompressConfig(copy_files=("a",)).model_dump(mode="json")) == list(all_settings())
    assert (written["effort"], written["basis"], written["layers"]) == ("best", "qr", [{"match": "a", "bits": 3}])
    assert CompressConfig.model_validate(written) == CompressConfig.model_validate_json(json.dumps(written))


def test_every_encoder_reads_its_settings_and_no_others():
    for name, encoder in ENCODERS.items():
        settings = EncoderConfig(encoder=name, seed=7).settings
        assert type(settings) is encoder.Settings
        assert settings.seed == 7
        read = {key for key, setting in all_settings().items() if name in setting.encoders}
        assert read == set(encoder.Settings.model_fields) - set(EncoderSettings.model_fields)


def test_rules_that_do_not_go_together(yaml_file):
    """Each can be, with the settings of all; both of them on one matrix cannot."""
    rules = "layers:\n- {match: '*.fc*', encoder: greedy}\n- {match: '*.fc2', levels: 6}\n"
    config = load_config(yaml_file(f"init: peaks\n{rules}"))
    assert settings_of_matrix(config, "0.fc1").encoder == "greedy"
    with pytest.raises(KQuantError, match=r"^layers: the rules that fit 0\.fc2 do not .* cannot have 6 levels"):
        settings_of_matrix(config, "0.fc2")
    rules = rules.replace("encoder: greedy", "init: peaks").replace("'*.fc*'", "'*.fc?'")
    config = load_config(yaml_file(f"on_no_convergence: kmeans\n{rules}"))
    with pytest.raises(KQuantError, match=r"^layers: 0\.fc2: `on_no_convergence` is 'kmeans': `init: peaks` cannot"):
        settings_of_matrix(config, "0.fc2")


def test_settings_can_be_copied_and_pickled():
    for config in (EncoderConfig(side="output"), CompressConfig(bits=3.5, layers=[{"match": "a", "bits": 3}])):
        assert pickle.loads(pickle.dumps(config)) == copy.deepcopy(config) == config


def test_an_encoder_cannot_have_a_setting_of_all(monkeypatch):
    class Own(EncoderSettings):
        calibration: str = Field("", description="something else")

    class Rival(Encoder[Own]):
        name, summary, Settings = "rival", "", Own
        layout = encode = expected_error = None

    monkeypatch.setitem(ENCODERS, "rival", Rival())
    with pytest.raises(TypeError, match="encoder 'rival' has a setting 'calibration', which all encoders have already"):
        all_settings()


def test_two_encoders_cannot_mean_different_things_by_one_setting(monkeypatch):
    class Other(EncoderSettings):
        group_size: int = Field(64, description="something else")

    class Rival(Encoder[Other]):
        name, summary, Settings = "rival", "", Other
        layout = encode = expected_error = None

    monkeypatch.setitem(ENCODERS, "rival", Rival())
    with pytest.raises(
        TypeError, match="encoder 'rival' has a setting 'group_size' that another encoder has otherwise"
    ):
        all_settings()
