"""How much longer a tokenizer's rules may make a text: a chain of replacements of one letter by ten is a bomb.

tokenizers (Rust) applies the rules of tokenizer.json to every text, and cannot be interrupted. Each rule makes a text
longer by at most a factor, that of a replacement being the letters that it puts in place of one; those of a chain
multiply. What models really have (a space becomes one other letter, a dummy prefix) stays below 10.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any, Final

MOST: Final = 100.0  # letters of one
TEXTS: Final = ("content", "prepend")  # under which rules have what they put into a text


def require_little_growth(tokenizer: Any) -> None:
    """ValueError where the rules of a transformers tokenizer, if Rust runs it, may make a text MOST times as long."""
    rust = getattr(tokenizer, "backend_tokenizer", None)
    for part in ("normalizer", "pre_tokenizer", "decoder"):
        state = _state(getattr(rust, part, None))
        if state is not None and (factor := _growth(json.loads(state))) > MOST:
            raise ValueError(f"the {part} of its tokenizer.json makes a text up to {factor:.3g} times as long")


def _state(rules: Any) -> bytes | str | None:
    """The rules as tokenizer.json has them; None where there are none, or they are Python's (of a class)."""
    try:
        state = rules.__getstate__()
    except Exception:  # tokenizers has no exception of its own for rules that it cannot write
        return None
    return state if isinstance(state, bytes | str) else None


def _growth(rules: Any) -> float:
    """The product of the factors of all rules within `rules`, as tokenizer.json has them."""
    return math.prod(1.0 + len(text) if key == "prepend" else max(1.0, len(text)) for key, text in _texts(rules))


def _texts(rules: Any) -> Iterator[tuple[str, str]]:
    if isinstance(rules, dict):
        yield from ((key, rules[key]) for key in TEXTS if isinstance(rules.get(key), str))
    for part in rules.values() if isinstance(rules, dict) else rules if isinstance(rules, list) else ():
        yield from _texts(part)
