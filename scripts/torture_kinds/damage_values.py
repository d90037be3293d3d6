"""JSON that is damaged with knowledge of its structure: values of other types and sizes, names that lead outside."""

from __future__ import annotations

import json
import random
from copy import deepcopy
from typing import Any

CONTROL_NAMES = ["\x1b]0;owned\x07", "a\nb", "a\x1b[2Jb", "\u202egnp.exe", "\ud800", "\x9b31m", "x" * 5000, " ", "-rf"]
OUTSIDE = ["../bystanders/canary", "../out.txt", "../../canary", "/etc/hostname", "C:\\x", "..\\canary", "a/../../x"]
OUTSIDE += ["./x", "a\0b", ""]
NUMBERS = [-1, 0, 1, 2, 3, 7, 255, 65536, 10**9, 2**31, 2**32, 2**63, 2**64, 10**30, 0.5, -0.0, 1e-320, 1e308]
ODD = [None, True, False, [], {}, [[]], [None], {"": None}, float("nan"), float("inf"), float("-inf")]
RAW = {  # what json.dumps would not write, by what stands for it
    "@many digits@": "9" * 5000,
    "@deep lists@": "[" * 50000 + "]" * 50000,
    "@deep objects@": '{"a":' * 2000 + "1" + "}" * 2000,
    "@long list@": "[" + "0," * 100000 + "0]",
    "@huge exponent@": "1e999999",
    "@bad escape@": '"\\x"',
}
TEXTS = ("twice", "cut", "byte order mark", "utf-16", "comma", "comment", "nul", "nothing", "list", "two documents")


def hostile(draw: random.Random) -> Any:
    """A value that is most likely of the wrong type, size or meaning."""
    return deepcopy(draw.choice(draw.choice((CONTROL_NAMES, OUTSIDE, NUMBERS, ODD, list(RAW)))))  # may be changed later


def damaged_json(text: str, draw: random.Random) -> tuple[bytes, str]:
    """The JSON `text` with one to three faults, and those in words."""
    if draw.random() < 0.15:
        return _damaged_text(text, draw)
    document, words = json.loads(text), []
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        document, what = _damaged(document, draw)
        words.append(what)
    raw = json.dumps(document, indent=draw.choice((None, 1)))
    for name, content in RAW.items():
        raw = raw.replace(json.dumps(name), content)
    return raw.encode(), ", ".join(words)


def _damaged(document: Any, draw: random.Random) -> tuple[Any, str]:
    """A document with one entry changed, removed, added or renamed."""
    found = _place(document, draw)
    if found is None:
        return hostile(draw), "all of it is another value"
    holder, key = found
    way = draw.choice(("value", "value", "near", "near", "remove", "rename", "add", "swap"))
    old = holder[key]
    if way == "near" and type(old) in (int, float):
        holder[key] = draw.choice((old + 1, old - 1, -old, old * 2, old * 1000, float(old), str(old), [old]))
    elif way == "remove":
        del holder[key]
    elif way == "rename" and isinstance(holder, dict):
        name = draw.choice(CONTROL_NAMES + OUTSIDE)
        holder[name] = holder.pop(key)
        return document, f"{key!r} is named {_short(name)}"
    elif way == "add":
        name = draw.choice(CONTROL_NAMES + OUTSIDE)
        if isinstance(holder, dict):
            holder[name] = draw.choice((old, hostile(draw)))
        else:
            holder.append(hostile(draw))
        return document, f"one more beside {key!r}: {_short(name)}"
    elif way == "swap":
        other, place = _place(document, draw) or found
        holder[key], other[place] = json.loads(json.dumps(other[place])), json.loads(json.dumps(old))
        return document, f"{key!r} and {place!r} are exchanged"
    else:
        holder[key] = hostile(draw)
    now = "gone" if way == "remove" else _short(holder[key])
    return document, f"{key!r} is {now} instead of {_short(old)}"


def _place(document: Any, draw: random.Random) -> tuple[Any, Any] | None:
    """An entry of the containers within each other: container and key; the higher up, the likelier."""
    holder, found = document, None
    while isinstance(holder, dict | list) and holder and (found is None or draw.random() < 0.65):
        key = draw.choice(list(holder)) if isinstance(holder, dict) else draw.randrange(len(holder))
        found, holder = (holder, key), holder[key]
    return found


def _damaged_text(text: str, draw: random.Random) -> tuple[bytes, str]:
    """The same as text: what no JSON document can say."""
    way = draw.choice(TEXTS)
    first = text.find("{") + 1
    made = {
        "twice": lambda: text[:first] + _first_entry(text) + "," + text[first:],
        "cut": lambda: text[: draw.randrange(len(text))],
        "byte order mark": lambda: "\ufeff" + text,
        "utf-16": lambda: text,
        "comma": lambda: text.rstrip().removesuffix("}") + ",}",
        "comment": lambda: "// a comment\n" + text,
        "nul": lambda: text + "\0",
        "nothing": lambda: "",
        "list": lambda: f"[{text}]",
        "two documents": lambda: text + text,
    }[way]()
    return made.encode("utf-16" if way == "utf-16" else "utf-8"), f"as text: {way}"


def _first_entry(text: str) -> str:
    """The first entry of an object, with another value."""
    document = json.loads(text)
    return f"{json.dumps(next(iter(document)))}: 7" if isinstance(document, dict) and document else '"a": 1, "a": 2'


def _short(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:40]}... ({len(text)} characters)"
