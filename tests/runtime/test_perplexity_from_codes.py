"""A perplexity measured from the codes is that of the dense checkpoint that `kquant decompress` writes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest


def test_as_of_the_decompressed_model(demo_bundle: Path, kquant: Any, tmp_path: Path) -> None:
    bundle = shutil.copytree(demo_bundle, tmp_path / "bundle")  # which keeps the result
    dense = tmp_path / "dense"
    assert kquant("decompress", bundle, "-o", dense, "--dtype", "float32").code == 0
    found = []
    for model in (bundle, dense):
        flags = ["--task", "demo", "--limit", 8, "--json", tmp_path / "result.json"]
        assert kquant("eval", model, *flags).code == 0
        found.append(json.loads((tmp_path / "result.json").read_text())["results"][0]["perplexity"])
    assert found[0] == pytest.approx(found[1], rel=1e-5)
