"""A chat as the text that a model's own template makes of it, within limits of time, memory and size."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from kquant_cli.errors import KQuantError, clipped, shortened
from kquant_cli.hf import render_template
from kquant_cli.hf.failures import first_line
from kquant_cli.hf.tokens import tokenizer_of

SECONDS: Final = 2  # of computing: templates that models have take milliseconds
WAIT: Final = 60  # seconds in all, imports included, on a machine that is busy
ROOM: Final = 500_000_000  # bytes of memory beyond what the imports take
LETTERS: Final = 1_000_000  # that a template may add to the messages
LONGEST: Final = 1_000_000  # letters of the template itself
FILES: Final = ("chat_template.jinja", "chat_template.json", "tokenizer_config.json")


def chat_text(path: str, tokenizer: Any, messages: list[dict[str, str]]) -> str:
    """What the chat template of `tokenizer`, the one of `path`, makes of the messages (role, content).

    As transformers' `apply_chat_template`, with the beginning of an answer, before it is tokenised.

    Raises
    ------
    KQuantError
        There is no template, it is none, or it fails, computes for more than SECONDS or makes too long a text.
    """
    if not tokenizer.chat_template:
        raise KQuantError(f"{path} has no chat template: give the prompt without --chat")
    with tokenizer_of(path):
        template = tokenizer.get_chat_template()
        tokens = dict(tokenizer.special_tokens_map)
    if not isinstance(template, str) or len(template) > LONGEST:
        kind = f"a text of {len(template)} letters" if isinstance(template, str) else shortened(template)
        raise _refused(path, f"expected a text of at most {LONGEST} letters, found {kind}")
    asked = {
        "template": template,
        "messages": messages,
        "tokens": tokens,
        "seconds": SECONDS,
        "room": ROOM,
        "letters": LETTERS + sum(len(message["content"]) for message in messages),
    }
    answer = _in_a_process(path, asked)
    if "error" in answer:
        said = clipped(first_line(Exception(answer["error"]), "it gives no reason"), 200)
        raise _refused(path, said.rstrip("."))
    try:
        answer["text"].encode()
    except UnicodeEncodeError as error:
        raise _refused(path, "it makes half a character, which is no text") from error
    return answer["text"]


def _in_a_process(path: str, asked: dict[str, Any]) -> dict[str, str]:
    """What render_template.py answers; KQuantError where it is stopped, or ends without an answer."""
    own = {**os.environ, "PYTHONPATH": os.pathsep.join(part for part in sys.path if part), "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, "-P", str(Path(render_template.__file__))]
    try:
        done = subprocess.run(
            command, input=json.dumps(asked).encode(), capture_output=True, timeout=WAIT, env=own, check=False
        )
        answer: dict[str, str] = json.loads(done.stdout)
    except subprocess.TimeoutExpired as error:
        raise _refused(path, f"it was not done after {WAIT} seconds") from error
    except ValueError as error:
        why = f"it computed for more than {SECONDS} seconds" if done.returncode < 0 else "its process ended"
        raise _refused(path, why) from error
    return answer


def _refused(path: str, why: str) -> KQuantError:
    file = next((name for name in FILES if (Path(path) / name).exists()), FILES[0])
    return KQuantError(f"the chat template of {path} ({file}) cannot be used ({why}): give the prompt without --chat")
