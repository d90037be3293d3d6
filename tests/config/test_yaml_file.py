"""YAML that is no settings: one sentence that names the file and the key, with the value shortened."""

import os
import time
from pathlib import Path

import pytest

from kquant_cli.config import all_settings, load_config
from kquant_cli.errors import KQuantError

NINE = "&a [x,x,x,x,x,x,x,x,x]"
BOMB = f"a: {NINE}\n" + "".join(
    f"{name}: &{name} [{','.join(9 * [f'*{before}'])}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
HOSTILE = {
    "aliases of aliases": (BOMB, "more than 5000 values"),
    "a list within itself": ("include: &a [*a]", "20 levels"),
    "a map within itself": ("&a {bits: *a}", "20 levels"),
    "deep lists": ("[" * 50_000, "20 levels"),
    "deep maps": ("{a: " * 10_000, "20 levels"),
    "many values": ("include: [" + "a," * 20_000 + "]", "more than 5000 values"),
    "a date": ("bits: 2020-01-01", "`bits` is '2020-01-01', expected a number"),
    "no date": ("seed: 2020-13-45", "`seed` is '2020-13-45', expected an integer"),
    "a time": ("seed: 2001-12-14t21:59:43.10-05:00", "`seed` is '2001"),
    "many digits": (f"seed: {'9' * 5000}", "`seed` is a number of 5000 letters"),
    "many digits less than nothing": (f"seed: -{'9' * 5000}", "`seed` is a number of 5001 letters"),
    "many hexadecimal digits": (f"seed: 0x{'f' * 90}", "`seed` is a number of about 109 digits"),
    "base sixty": (f"seed: 1{':1' * 30_000}", "`seed` is a number of 60001 letters"),
    "many zeros": (f"tune_minutes: 1{'0' * 5000}.0", "`tune_minutes` is a number of 5003 letters"),
    "many digits in a text": (f"on_no_convergence: 'uniform:{'9' * 5000}'", "`on_no_convergence` is 'uniform:999"),
    "a key twice": ("bits: 4\nbits: 3", "line 2 has the key 'bits' again"),
    "a key of a rule twice": ("layers:\n- {match: a, bits: 2, bits: 3}", "line 2 has the key 'bits' again"),
    "an object": ("bits: !!python/object:os.system x", "`bits` has the tag '!!python/object:os.system'"),
    "a call": ("!!python/object/apply:os.system ['echo hi']", "has the tag '!!python/object/apply:os.system'"),
    "a tag of one's own": ("bits: !x 3", "`bits` has the tag '!x'"),
    "a date by its tag": ("bits: !!timestamp x", "`bits` has the tag '!!timestamp'"),
    "a truth by its tag": ("bits: !!bool x", "not valid YAML"),
    "bytes": ("bits: !!binary x", "`bits` has the tag '!!binary'"),
    "a set": ("include: !!set {a}", "`include` has the tag '!!set'"),
    "NUL": ("bits: 4\0", "not valid YAML"),
    "a bell": ("bits: \x07", "not valid YAML"),
    "a number for a key": ("1: 4", "`1` is not a setting (line 1)"),
    "a truth for a key": ("yes: 4", "`yes` is not a setting (line 1)"),
    "a list for a key": ("[a]: 4", "a sequence is not a setting (line 1)"),
    "no key": ("? \n: 4", "is not a setting (line 1)"),
    "a number for a key of a rule": ("layers: [{1: 2}]", "`1` is not a setting"),
    "not a number": ("bits: .nan", "`bits` is nan, expected a number from 1 to 8"),
    "no end": ("tune_minutes: .inf", "`tune_minutes` is inf, expected a finite number"),
    "a long text": (f"encoder: {'x' * 50_000}", "`encoder` is 'xxx"),
    "a long key": (f"? {'x' * 50_000}\n: 4", "is not a setting"),
    "half a character": ('encoder: "\\ud800"', "`encoder` is '\\ud800'"),
    "an escape": ('encoder: "\\e[31m"', "`encoder` is '\\x1b[31m'"),
    "two documents": ("---\nbits: 4\n---\nbits: 3", "not valid YAML at line 3"),
    "an alias of nothing": ("bits: *nope", "not valid YAML at line 1"),
    "a merge of a number": ("<<: 3", "not valid YAML at line 1"),
    "a text": ("hello", "expected lines of `key: value`, found str"),
    "too many bytes": ("#" * 200_000, "more than 100000 bytes"),
}


@pytest.mark.parametrize(("content", "says"), HOSTILE.values(), ids=HOSTILE)
def test_yaml_that_is_no_settings(tmp_path: Path, content: str, says: str) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text(content, encoding="utf-8")
    started = time.process_time()
    with pytest.raises(KQuantError) as caught:
        load_config(path)
    assert time.process_time() - started < 5
    sentence = str(caught.value)
    assert sentence.startswith(str(path))
    assert says in sentence
    assert "\n" not in sentence
    assert len(sentence) < 800


@pytest.mark.parametrize("value", [".nan", "-.inf", "[1]", "{a: 1}", "true", "-1", "x\\u0007", "2020-01-01", "1e999"])
@pytest.mark.parametrize("key", list(all_settings()))
def test_wrong_values_of_every_setting(tmp_path: Path, key: str, value: str) -> None:
    """They are refused by a sentence that names the setting, where they are not right by chance."""
    path = tmp_path / "settings.yaml"
    path.write_text(f"{key}: {value}", encoding="utf-8")
    try:
        load_config(path)
    except KQuantError as error:
        assert str(error).startswith(f"{path}: `{key}")
        assert len(str(error)) < 400


def test_what_yaml_may_say(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text(
        "\ufeff# a mark of its bytes\nlayers:\n- &rule {match: a, bits: 2}\n- {<<: *rule, match: b}\n", "utf-8"
    )
    assert [rule.apply(load_config(path).base()).bits for rule in load_config(path).layers] == [2, 2]
    path.write_text("", encoding="utf-8")
    assert load_config(path) == load_config()


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, why in (
        (tmp_path / "pipe", "no plain file"),
        (Path("/dev/zero"), "no plain file"),
        (tmp_path, "directory"),
    ):
        with pytest.raises(KQuantError, match=rf"{path}: cannot be read \(.*{why}\)"):
            load_config(path)
    with pytest.raises(KQuantError, match="cannot be read"):
        load_config(Path("a\0b"))
    (tmp_path / "latin.yaml").write_bytes(b"bits: \xe9")
    with pytest.raises(KQuantError, match=r"not UTF-8 \(byte 6\)"):
        load_config(tmp_path / "latin.yaml")
