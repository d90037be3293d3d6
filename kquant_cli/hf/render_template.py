"""Renders a chat template in a process of its own: a program, which chat_template.py starts.

A template is a program of whoever wrote the checkpoint. transformers runs it in jinja's sandbox, which keeps it from
the files and the interpreter, but not from computing for ever or taking all memory: so the process has a limit of both,
set after the imports. It reads one JSON object from standard input and writes one to standard output.
"""

from __future__ import annotations

import json
import math
import sys
from contextlib import suppress
from typing import Any


def limit(seconds: int, room: int) -> None:
    """Let this process compute for so many seconds more, and take so many bytes of memory more, where systems can."""
    with suppress(ImportError, ValueError, OSError):
        import resource  # noqa: PLC0415 (not on Windows)

        used = resource.getrusage(resource.RUSAGE_SELF)
        until = math.ceil(used.ru_utime + used.ru_stime) + seconds
        resource.setrlimit(resource.RLIMIT_CPU, (until, until))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        import psutil  # noqa: PLC0415

        size = psutil.Process().memory_info().vms + room
        resource.setrlimit(resource.RLIMIT_AS, (size, size))


def render(asked: dict[str, Any]) -> dict[str, str]:
    """`text`, or `error`: what the template's own code raised."""
    from transformers.utils.chat_template_utils import render_jinja_template  # noqa: PLC0415 (a second to import)

    limit(asked["seconds"], asked["room"])
    try:
        rendered: Any = render_jinja_template(
            conversations=[asked["messages"]],
            chat_template=asked["template"],
            add_generation_prompt=True,
            **asked["tokens"],
        )
        text: str = rendered[0][0]
    except MemoryError:
        return {"error": "it takes too much memory"}
    except RecursionError:
        return {"error": "it calls itself without end"}
    except Exception as error:  # a template can raise anything
        return {"error": f"{type(error).__name__}: {str(error)[:1000]}"}
    if len(text) > asked["letters"]:
        return {"error": f"it makes a text of {len(text)} letters, and at most {asked['letters']} are read"}
    return {"text": text}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(render(json.load(sys.stdin))))
