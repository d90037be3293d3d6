"""Fixtures that several rooms use."""

import json
import os

os.environ["HF_HUB_OFFLINE"] = "1"  # no test reaches a hub
os.environ.setdefault("COLUMNS", "160")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the matrices are tiny: threads would only wait for each other

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tiny_models


@dataclass(frozen=True)
class Outcome:
    """What a command printed and how it ended."""

    code: int
    out: str
    err: str


@pytest.fixture(scope="session")
def shared() -> Callable[[str], Path]:
    """shared("data/glue"): a part of the folder of texts and models beside the checkout; a test is skipped without it.

    The environment variable KQUANT_SHARED names the folder; nothing is looked for without it.
    """

    def part(name: str) -> Path:
        if "KQUANT_SHARED" not in os.environ:
            pytest.skip("needs texts and models: KQUANT_SHARED names no folder")
        path = Path(os.environ["KQUANT_SHARED"]) / name
        if not path.exists():
            pytest.skip(f"needs texts and models: there is no {path}")
        return path

    return part


@pytest.fixture(scope="session")
def scripts(pytestconfig: pytest.Config) -> Path:
    """The folder of the checkout's scripts."""
    return pytestconfig.rootpath / "scripts"


@pytest.fixture
def kquant(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Run the command line in this process: kquant("compress", folder, "--bits", 4)."""
    from kquant_cli.cli import main

    def run(*args: object) -> Outcome:
        capsys.readouterr()
        try:
            main([str(arg) for arg in args])
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        return Outcome(code, *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Llama checkpoint; tests must not change it."""
    return tiny_models.make("llama", tmp_path_factory.mktemp("llama") / "tiny-llama")


@pytest.fixture(scope="session")
def demo_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded language model at 4 bits, quickly; tests must not change it."""
    from kquant_cli.checkpoint import open_checkpoint
    from kquant_cli.compress import pipeline
    from kquant_cli.compress.plan import make_plan
    from kquant_cli.config import CompressConfig
    from kquant_cli.demo import demo_model_path

    folder = tmp_path_factory.mktemp("demo") / "bundle"
    settings = CompressConfig(effort="fast", calibration="none")
    pipeline.compress(make_plan(open_checkpoint(demo_model_path()), settings), folder)
    return folder


@pytest.fixture(scope="session")
def opt() -> Path:
    """The folder of the embedded language model."""
    from kquant_cli.demo import demo_model_path

    return demo_model_path()


@pytest.fixture
def read() -> Callable[[Path], Any]:
    """What a file of JSON holds."""
    return lambda file: json.loads(file.read_text(encoding="utf-8"))
