"""Every program finds kquant: the file that wheels and editable installs bring, and what it waits for."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

NAME = "kquant_autoload.pth"
BUILD = "from setuptools import build_meta; print(build_meta.build_{kind}({out!r}))"
SITE = "import site, sys; site.addsitedir({folder!r})\n"
CLIENTS = """
from transformers import AutoModelForCausalLM, pipeline
print(type(AutoModelForCausalLM.from_pretrained({bundle!r}).model.decoder.layers[0].fc1).__name__)
print(pipeline("text-generation", {bundle!r})("The", max_new_tokens=4)[0]["generated_text"])
"""


def python(
    program: str, *options: str, path: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a program that has `path` in front of the places where modules are found."""
    found = os.pathsep.join(filter(None, [str(path or ""), os.environ.get("PYTHONPATH", "")]))
    env = {**os.environ, "PYTHONPATH": found, **environment}
    return subprocess.run(
        [sys.executable, *options, "-c", program], capture_output=True, text=True, check=False, env=env
    )


@pytest.fixture(scope="module")
def wheels(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> dict[str, zipfile.ZipFile]:
    """What pip would install, as a wheel and in editable form."""
    setuptools = pytest.importorskip("setuptools", minversion="77", reason="needs the setuptools of pyproject.toml")
    assert setuptools
    source, out = tmp_path_factory.mktemp("source") / "kquant", tmp_path_factory.mktemp("wheels")
    left_out = shutil.ignore_patterns("*.pyc", "demo", "cuda")
    shutil.copytree(pytestconfig.rootpath / "kquant_cli", source / "kquant_cli", ignore=left_out)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "kquant_autoload.py"):
        shutil.copy(pytestconfig.rootpath / name, source / name)
    made = {}
    for kind in ("wheel", "editable"):
        program = BUILD.format(kind=kind, out=str(out))
        done = subprocess.run([sys.executable, "-c", program], cwd=source, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        made[kind] = zipfile.ZipFile(out / done.stdout.splitlines()[-1])
    return made


@pytest.fixture(scope="module")
def site(wheels: dict[str, zipfile.ZipFile], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of installed packages with nothing but our file."""
    folder = tmp_path_factory.mktemp("site")
    wheels["wheel"].extract(NAME, folder)
    return folder


@pytest.mark.parametrize("kind", ["wheel", "editable"])
def test_an_install_brings_the_file_and_knows_that_it_did(kind: str, wheels: dict[str, zipfile.ZipFile]) -> None:
    """What RECORD names is what `pip uninstall` removes."""
    names = wheels[kind].namelist()
    record = next(name for name in names if name.endswith(".dist-info/RECORD"))
    assert NAME in names
    assert f"\n{NAME},sha256=" in "\n" + wheels[kind].read(record).decode()
    assert wheels[kind].read(NAME) == wheels["wheel"].read(NAME)
    assert ("kquant_autoload.py" in names) == (kind == "wheel")


def test_a_program_that_never_heard_of_kquant_loads_a_bundle(site: Path, demo_bundle: Path) -> None:
    ran = python(SITE.format(folder=str(site)) + CLIENTS.format(bundle=str(demo_bundle)))
    assert ran.returncode == 0, ran.stderr
    kind, *text = ran.stdout.splitlines()
    assert kind == "KashinLinear"
    assert text[0].startswith("The")


def test_the_start_of_an_interpreter_stays_light() -> None:
    program = "import sys; before = {*sys.modules, 'kquant_autoload'}\nimport kquant_autoload\n"
    ran = python(f"{program}print(sorted({{*sys.modules}} - before))", "-S")
    assert ran.stdout.strip() in ("['__future__']", "[]"), ran.stderr


def test_an_environment_variable_turns_it_off(site: Path) -> None:
    program = SITE.format(folder=str(site)) + "print('kquant_autoload' in sys.modules)"
    assert python(program, "-S", KQUANT_AUTOLOAD="1").stdout == "True\n"
    assert python(program, "-S", KQUANT_AUTOLOAD="0").stdout == "False\n"


def test_no_fault_keeps_an_interpreter_from_starting(site: Path, tmp_path: Path) -> None:
    (tmp_path / "kquant_autoload.py").write_text("raise OSError('torn')")
    ran = python(SITE.format(folder=str(site)) + "print('started')", "-S", path=tmp_path)
    assert (ran.stdout, ran.stderr) == ("started\n", "")


def test_no_fault_of_ours_takes_transformers_away() -> None:
    """As where kquant is half installed, or transformers changed what we need of it."""
    program = "import sys, kquant_autoload; sys.modules['kquant_cli.runtime.quantizer'] = None\n"
    ran = python(program + "from transformers.quantizers import auto; print(auto.AutoHfQuantizer.__name__)")
    assert ran.stdout == "AutoHfQuantizer\n", ran.stderr
    assert "kquant cannot register with transformers, so that bundles will not load there (" in ran.stderr


def test_looking_for_a_module_is_not_importing_it() -> None:
    program = "import importlib.util, sys, kquant_autoload\nimport transformers\n"
    program += "assert importlib.util.find_spec('transformers.quantizers.auto').loader.get_source\n"
    program += "from transformers.quantizers import auto; print('kashin' in auto.AUTO_QUANTIZER_MAPPING)"
    ran = python(program)
    assert ran.stdout == "True\n", ran.stderr


def test_where_kquant_is_installed_the_interpreter_has_it() -> None:
    try:
        files = importlib.metadata.files("kashin-quant") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    if NAME not in map(str, files):
        pytest.skip("kashin-quant is not installed here, or by an older build: pip install -e .")
    ran = python("import sys; print('kquant_autoload' in sys.modules, 'torch' in sys.modules)")
    assert ran.stdout == "True False\n", ran.stderr
