"""Numbers of a config.json for which transformers makes objects one by one, before it looks at any weight."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

MOST_LAYERS = 10_000  # of any kind; the deepest model has a few hundred, the one with the most experts some hundred
COUNTS = re.compile(r"(^|_)(layers?|blocks|experts|depths?)$")


def oversized(config: Mapping[str, Any]) -> str:
    """What a config asks too many of, in words with the limit; "" for one that can be built."""
    parts: list[Any] = [config]
    while parts:
        part = parts.pop()
        parts += [
            inner for inner in (part.values() if isinstance(part, dict) else part) if isinstance(inner, dict | list)
        ]
        for key, value in part.items() if isinstance(part, dict) else ():
            if type(value) is int and value > MOST_LAYERS and COUNTS.search(key):
                return f"{key} is {value if value < 1 << 63 else 'beyond 2^63'}, expected at most {MOST_LAYERS}"
    return ""
