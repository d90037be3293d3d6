"""Chat templates: the text that transformers makes, and limits for templates that compute for ever."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny_text_models

from kquant_cli.errors import KQuantError
from kquant_cli.hf.chat_template import LETTERS, chat_text
from kquant_cli.hf.tokens import read_tokenizer

MESSAGES = [{"role": "user", "content": "ka shin {{ 1 }} \N{SNOWMAN} é"}]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}\n  <{{ m['role'] }}> {{ m['content'] | trim }}{% endfor %}"
    "{% if add_generation_prompt %}{{ messages | tojson }}<assistant>{% endif %}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chat")
    tiny_text_models.save_tokenizer(folder)
    return folder


def made(folder: Path, template: Any) -> str:
    tokenizer = read_tokenizer(folder)
    tokenizer.chat_template = template
    return chat_text(str(folder), tokenizer, MESSAGES)


def test_the_text_is_that_of_transformers(folder: Path) -> None:
    tokenizer = read_tokenizer(folder)
    tokenizer.chat_template = TEMPLATE
    expected = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, tokenize=False)
    assert chat_text(str(folder), tokenizer, MESSAGES) == expected
    assert made(folder, {"default": TEMPLATE, "other": "x"}) == expected


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{% for %}", "TemplateSyntaxError"),
        ("{{ raise_exception('roles must\n alternate' ~ 'x' * 5000) }}", "TemplateError: roles must"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "SecurityError"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "it calls itself without end"),
        ("{{ 'a' * 10**11 }}", "it takes too much memory"),
        ("{% for i in range(2000) %}{{ 'a' * 1000 }}{% endfor %}", f"at most {LETTERS + len(MESSAGES[0]['content'])}"),
        (
            "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
            "computed for more than 2 s",
        ),
        ("{{ 10 ** (10 ** 9) }}", "computed for more than 2 s"),
        ("{{ '\\ud800' }}", "half a character"),
    ],
    ids=["syntax", "raise", "attributes", "recursion", "memory", "long", "loop", "power", "half"],
)
def test_templates_that_cannot_be_used(folder: Path, template: str, says: str) -> None:
    with pytest.raises(KQuantError) as caught:
        made(folder, template)
    assert says in str(caught.value)
    assert "the chat template of" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("template", [3, ["x"], "x" * 1_000_001, {"other": "x"}])
def test_what_is_no_template(folder: Path, template: Any) -> None:
    with pytest.raises(KQuantError) as caught:
        made(folder, template)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("template", [None, "", {}])
def test_without_a_template(folder: Path, template: Any) -> None:
    with pytest.raises(KQuantError, match="has no chat template: give the prompt without --chat"):
        made(folder, template)


def test_the_file_is_named(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "chat_template.jinja").write_text("{% for %}")
    with pytest.raises(KQuantError, match=rf"of {copy} \(chat_template\.jinja\) cannot be used"):
        chat_text(str(copy), read_tokenizer(copy), MESSAGES)
