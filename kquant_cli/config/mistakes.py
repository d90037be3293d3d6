"""A mistake in the settings as one sentence: the key's path, what was expected, and the nearest valid spelling."""

from __future__ import annotations

from pydantic import ValidationError

from kquant_cli.config.schema import COMBINATION, OPTIONS, CompressConfig, EncoderConfig, all_settings
from kquant_cli.errors import clipped, shortened
from kquant_cli.suggestions import nearest

WORDS = (("a valid tuple", "a list"), ("a valid integer", "an integer"), ("a valid ", "a "))  # pydantic's and ours


def explain(error: ValidationError, prefix: str = "") -> str:
    """The first mistake; `prefix` is the path of the rule that it is in."""
    first = error.errors()[0]
    at = first["loc"]
    places = [clipped(str(part)) for part in (at[1:] if at[:1] == (OPTIONS,) else at)]
    path = prefix + ".".join(places)
    if first["type"] == COMBINATION:
        return f"{path.removesuffix('.')}: {first['msg']}" if path else first["msg"]
    key, value = places[-1] if places else "", first["input"]
    if first["type"] == "extra_forbidden":
        known = all_settings(EncoderConfig if prefix else CompressConfig)
        return f"`{path}` is not a setting{nearest(key, known) or '; known are ' + ', '.join(known)}"
    if first["type"] == "literal_error":
        meant = nearest(str(shortened(value)).strip("'"), all_settings()[key].choices)
        return f"`{path}` is {shortened(value)}, expected {first['ctx']['expected']}{meant}"
    if first["type"] == "invalid_key":
        return f"`{path}` is not a setting; known are {', '.join(all_settings())}"
    if first["type"] == "missing":
        return f"`{path}` is missing"
    expected = first["msg"].removeprefix("Input should be ")
    for pydantics, ours in WORDS:
        expected = expected.replace(pydantics, ours)
    expected = expected.removesuffix(" or instance of LayerRule")
    return f"`{path}` is {shortened(value)}, expected {expected}"
