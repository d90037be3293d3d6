"""A YAML file of settings as a dict, within bounds: what YAML can say beyond that is refused in one sentence.

YAML has aliases that grow without end when they are written out, keys twice, dates, tags that make objects, and numbers
of any length. Settings need none of it: keys are text, once each; values are texts, numbers, yes or no, and lists.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import yaml

from kquant_cli.errors import KQuantError, shortened
from kquant_cli.files.plain_files import open_plain

MOST_BYTES: Final = 100_000
MOST_VALUES: Final = 5000  # with every alias written out
DEEPEST: Final = 20
LONGEST_NUMBER: Final = 100  # letters
STANDARD: Final = "tag:yaml.org,2002:"
NUMBERS: Final = (f"{STANDARD}int", f"{STANDARD}float")
TAGS: Final = (*NUMBERS, *(f"{STANDARD}{name}" for name in ("str", "bool", "null", "seq", "map", "merge")))
EXPECTED: Final = "expected lines of `key: value`"


class _BeyondBoundsError(Exception):
    """Too many values, or too deep ones."""


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, for which a date is a text, and which stops at the bounds while it parses."""

    count = depth = 0

    yaml_implicit_resolvers = {  # noqa: RUF012 (so PyYAML has it)
        first: [(tag, pattern) for tag, pattern in resolvers if tag != f"{STANDARD}timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """One value, with what is in it."""
        self.count, self.depth = self.count + 1, self.depth + 1
        if self.count > 2 * MOST_VALUES or self.depth > DEEPEST + 1:
            raise _BeyondBoundsError
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def read_yaml(path: Path) -> dict[str, Any]:
    """The settings in a YAML file; {} for an empty one.

    Raises
    ------
    KQuantError
        The file cannot be read, is too large, or holds anything but settings: what, and at which line or key.
    """
    text = _text(path)
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        if root is None:
            return {}
        _check(path, root)
        values = loader.construct_document(root)
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError) as error:
        place = getattr(error, "problem_mark", None)
        line = f" at line {place.line + 1}" if place else ""
        raise KQuantError(f"{path}: not valid YAML{line}; {EXPECTED}") from error
    except _BeyondBoundsError as error:
        raise KQuantError(
            f"{path}: more than {MOST_VALUES} values or {DEEPEST} levels (as of aliases of aliases); {EXPECTED}"
        ) from error
    if not isinstance(values, dict | None):
        raise KQuantError(f"{path}: {EXPECTED}, found {type(values).__name__}")
    return values or {}


def _text(path: Path) -> str:
    try:
        with open_plain(path) as file:
            content = file.read(MOST_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise KQuantError(f"{path}: cannot be read ({reason}); give --config an existing YAML file") from error
    if len(content) > MOST_BYTES:
        raise KQuantError(f"{path}: more than {MOST_BYTES} bytes, which no settings need; {EXPECTED}")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise KQuantError(f"{path}: not UTF-8 (byte {error.start}); {EXPECTED}") from error


def _check(path: Path, root: yaml.Node) -> None:
    """Go through the nodes as if every alias were written out, to the bounds."""
    count, waiting = 0, [(root, "", 0)]
    while waiting:
        node, place, depth = waiting.pop()
        count += 1
        where = f"{path}: `{place}`" if place else f"{path}: line {node.start_mark.line + 1}"
        if count > MOST_VALUES or depth > DEEPEST:
            raise _BeyondBoundsError
        if node.tag not in TAGS:
            kind = shortened(node.tag.replace(STANDARD, "!!"))
            raise KQuantError(f"{where} has the tag {kind}; {EXPECTED} with texts, numbers and lists")
        if node.tag in NUMBERS and len(node.value) > LONGEST_NUMBER:
            raise KQuantError(f"{where} is a number of {len(node.value)} letters; expected a shorter one")
        waiting += [(part, name, depth + 1) for part, name in _parts(path, node, place)]


def _parts(path: Path, node: yaml.Node, place: str) -> Iterator[tuple[yaml.Node, str]]:
    """The nodes within a node, with their places in words; KQuantError for a key that is no text or there twice."""
    prefix = f"{place}." if place else ""
    if isinstance(node, yaml.SequenceNode):
        yield from ((part, f"{prefix}{i}") for i, part in enumerate(node.value))
    elif isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode) or key.tag not in (f"{STANDARD}str", f"{STANDARD}merge"):
                what = f"`{shortened(key.value)[1:-1]}`" if isinstance(key, yaml.ScalarNode) else f"a {key.id}"
                raise KQuantError(f"{path}: {what} is not a setting (line {line}): keys are text; {EXPECTED}")
            if key.value in seen:
                raise KQuantError(f"{path}: line {line} has the key {shortened(key.value)} again; give each key once")
            seen.add(key.value)
            yield value, f"{prefix}{shortened(key.value)[1:-1]}"
