"""A tiny language model, loaded once."""

import pytest
import tiny_text_models

from kquant_cli.hf.loading import LoadedModel
from kquant_cli.runtime import load_model


@pytest.fixture(scope="session")
def tiny_opt(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """A random OPT with 64 positions and its tokenizer, float32 on the CPU."""
    return load_model(tiny_text_models.make(tmp_path_factory.mktemp("evaluation") / "tiny-opt"), device="cpu")
