"""Settings: precedence, and a sentence for every kind of mistake."""

from pathlib import Path

import pytest

from kquant_cli.config import READ_BY, CompressConfig, EncoderConfig, load_config
from kquant_cli.errors import KQuantError

CONFIGS = Path(__file__).parent.parent / "configs"


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
    assert (config.bits, config.basis, config.max_iter) == (6, "qr", 200)


def test_shipped_files():
    assert load_config(CONFIGS / "default.yaml") == CompressConfig()
    assert load_config(CONFIGS / "paper-opt.yaml").max_iter == 200
    assert load_config(CONFIGS / "paper-glue.yaml").max_iter == 6000


def test_layer_rules_the_later_wins(yaml_file):
    path = yaml_file("layers:\n- {match: '*.fc*', bits: 5}\n- {match: '*.fc2', bits: 7, basis: hadamard}\n")
    config = load_config(path)
    assert config.for_matrix("model.0.fc2") == EncoderConfig(bits=7, basis="hadamard")
    assert config.for_matrix("model.0.fc1") == EncoderConfig(bits=5)
    assert config.for_matrix("model.0.q_proj") == EncoderConfig()


def test_exponents_as_people_write_them(yaml_file):
    assert load_config(yaml_file("tol: 1e-6")).tol == 1e-6  # YAML 1.1 reads this as text


def test_fallback():
    base = EncoderConfig(bits=6)
    assert CompressConfig(on_no_convergence="uniform:4").fallback(base) == EncoderConfig(encoder="uniform", bits=4)
    assert CompressConfig(on_no_convergence="kmeans").fallback(base) == EncoderConfig(encoder="kmeans", bits=6)
    assert CompressConfig(on_no_convergence="keep").fallback(base) is None


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("bit: 4", "`bit` is not a setting; did you mean `bits`"),
        ("bits: 9", "`bits` is 9, expected less than or equal to 8"),
        ("bits: 0", "`bits` is 0, expected greater than or equal to 1"),
        ("bits: '4'", "`bits` is '4', expected an integer"),
        ("bits: true", "`bits` is True, expected an integer"),
        ("bits: 3.5", "`bits` is 3.5, expected an integer"),
        ("tol: small", "`tol` is 'small', expected a number"),
        ("tol: -1", "`tol` is -1, expected greater than or equal to 0"),
        ("max_iter: 0", "`max_iter` is 0"),
        ("basis: dtc", "did you mean `dct`?"),
        ("encoder: gredy", "`encoder` is 'gredy', expected 'greedy', 'uniform' or 'kmeans'; did you mean `greedy`?"),
        ("rule: alternate", "did you mean `alternating`?"),
        ("form: rows", "`form` is 'rows', expected 'matrix' or 'vector'"),
        ("init: peak", "did you mean `peaks`?"),
        ("include: lm_head", "`include` is 'lm_head', expected a list"),
        ("layers:\n- {match: a, bitz: 3}", "`layers.0.bitz` is not a setting; did you mean `bits`"),
        ("layers:\n- {match: a, bits: 3}\n- {match: a, bits: 33}", "`layers.1.bits` is 33"),
        ("layers:\n- {bits: 3}", "`layers.0.match` is missing"),
        ("on_no_convergence: kep", "did you mean `keep`?"),
        ("on_no_convergence: uniform:9", "BITS from 1 to 8"),
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
    with pytest.raises(KQuantError, match="`basis` means nothing to the encoder uniform"):
        load_config(None, {"encoder": "uniform", "basis": "qr"})
    with pytest.raises(KQuantError, match="`group_size` means nothing to the encoder greedy"):
        load_config(None, {"group_size": 64})
    assert load_config(None, {"group_size": 64, "on_no_convergence": "uniform:4"}).group_size == 64
    read = set.union(*READ_BY.values()) | {"encoder", "bits", "seed"}
    assert read == set(EncoderConfig.model_fields)


def test_the_words_are_those_of_the_registries():
    from typing import get_args

    from kquant_cli.bases import BASES
    from kquant_cli.decomposition import RULES
    from kquant_cli.encoders import ENCODERS

    fields = EncoderConfig.model_fields
    assert set(get_args(fields["basis"].annotation)) == set(BASES)
    assert set(get_args(fields["rule"].annotation)) == set(RULES)
    assert set(get_args(fields["encoder"].annotation)) == set(ENCODERS) == set(READ_BY)
