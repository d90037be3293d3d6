"""Peak memory is that of a block and the hidden states: four times as many blocks hardly raise it."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kquant_cli.files.safetensors_writer import tensor_file

WIDTH, FEED_FORWARD, VOCABULARY = 768, 2048, 256
BLOCK = {f"self_attn.{name}_proj": (WIDTH, WIDTH) for name in "qkvo"} | {
    "mlp.gate_proj": (FEED_FORWARD, WIDTH),
    "mlp.up_proj": (FEED_FORWARD, WIDTH),
    "mlp.down_proj": (WIDTH, FEED_FORWARD),
}
BLOCK_BYTES = 4 * sum(rows * columns for rows, columns in BLOCK.values())  # in float32: 28 MB
MEASURE = """
import sys, torch
from kquant_cli.checkpoint import open_checkpoint, select_matrices
from kquant_cli.calibration import collect
torch.set_num_threads(1)
for folder in sys.argv[1:]:
    checkpoint = open_checkpoint(folder)
    names = [matrix.name for matrix in select_matrices(checkpoint).matrices]
    assert not collect(checkpoint, names, "random", seed=0, device="cpu", tokens=64).missing
    print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def write_llama(folder: Path, layers: int) -> Path:
    """A Llama of random float16 weights."""
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (VOCABULARY, WIDTH),
        "model.norm.weight": (WIDTH,),
    }
    for layer in range(layers):
        norms = {"input_layernorm": (WIDTH,), "post_attention_layernorm": (WIDTH,)}
        shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in (BLOCK | norms).items()}
    values = torch.randn(FEED_FORWARD * WIDTH, generator=torch.Generator().manual_seed(0)).mul_(0.03).half()
    folder.mkdir()
    with tensor_file(folder / "model.safetensors", [(n, torch.float16, s) for n, s in shapes.items()]) as file:
        for name, shape in shapes.items():
            file.write(name, values[: math.prod(shape)].view(shape))
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_hidden_layers": layers}
    sizes = {"hidden_size": WIDTH, "intermediate_size": FEED_FORWARD, "vocab_size": VOCABULARY}
    rest = {"num_attention_heads": 12, "tie_word_embeddings": True, "dtype": "float16"}
    (folder / "config.json").write_text(json.dumps(config | sizes | rest))
    return folder


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the system does not tell the peak")
def test_peak_memory_does_not_grow_with_the_number_of_blocks(tmp_path: Path):
    folders = [write_llama(tmp_path / str(layers), layers) for layers in (2, 8)]
    done = subprocess.run([sys.executable, "-c", MEASURE, *folders], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    peaks = [1024 * int(line) for line in done.stdout.split()]
    assert peaks[1] - peaks[0] < BLOCK_BYTES, "six more blocks take 170 MB in float32"
