"""Bundles are byte for byte what they were when their digests were kept (reference_bundles.py): every encoder, averages
of bits, with and without statistics, of several architectures."""

import json

import pytest
import reference_bundles


def test_bundles_are_what_they_were(tmp_path, monkeypatch):
    kept = json.loads(reference_bundles.KEPT.read_text(encoding="utf-8"))
    environment = reference_bundles.environment()
    if environment not in kept:
        pytest.skip(f"no digests are kept for {environment}; reference_bundles.py --write keeps some")
    monkeypatch.chdir(tmp_path)
    assert reference_bundles.digests(tmp_path) == kept[environment]
