"""The classes that configs name or ask for, without weights in memory."""

import pytest
import tiny_models
import transformers

from kquant_cli.hf.model_class import chosen_class, named_class


@pytest.mark.parametrize(
    ("architectures", "expected"),
    [
        (["LlamaForCausalLM"], transformers.LlamaForCausalLM),
        (["ZebraModel", "BertModel"], transformers.BertModel),
        (["ZebraModel"], None),
        (["LlamaConfig"], None),  # transformers has it, but it is no model
        ([None, 3], None),
        ("LlamaForCausalLM", None),
        ([], None),
        (None, None),
    ],
)
def test_the_first_that_transformers_has(architectures: object, expected: object) -> None:
    assert named_class(architectures) is expected  # type: ignore[arg-type]


def test_auto_classes_choose_by_the_config() -> None:
    config = tiny_models.build("llama").config
    config.hidden_size = 1 << 20  # terabytes, were it not on the meta device
    before = config.to_dict()
    assert chosen_class("AutoModelForCausalLM", config) is transformers.LlamaForCausalLM
    assert chosen_class("AutoModel", config) is transformers.LlamaModel
    assert config.to_dict() == before
    with pytest.raises(ValueError, match="ViT"):
        chosen_class("AutoModelForCausalLM", transformers.ViTConfig())
