"""Counts of a config that would have transformers make objects for ever."""

import pytest

from kquant_cli.files.model_sizes import MOST_LAYERS, oversized


@pytest.mark.parametrize(
    "key", ["num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "depth", "num_local_experts"]
)
def test_counts_are_bounded_at_any_depth(key: str) -> None:
    assert oversized({key: MOST_LAYERS}) == ""
    for config in ({key: 10**9}, {"text_config": {key: 10**9}}, {"a": [{"b": {key: 10**9}}]}):
        assert oversized(config) == f"{key} is 1000000000, expected at most 10000"
    assert oversized({key: 10**400}) == f"{key} is beyond 2^63, expected at most 10000"


@pytest.mark.parametrize("config", [{}, {"vocab_size": 10**6}, {"num_layers": "x"}, {"num_layers": 1e9, "a": [1, [2]]}])
def test_other_numbers_are_not_looked_at(config: dict) -> None:
    assert oversized(config) == ""
