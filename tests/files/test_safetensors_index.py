"""The weight map of an index, and names that would lead out of its folder."""

import pytest

from kquant_cli.errors import KQuantError
from kquant_cli.files.safetensors_index import IndexRefusals, weight_map

WORDS = IndexRefusals(
    no_map="{path} no map",
    no_file="{path} no {ending} file {file} for {tensor}",
    outside="{path} outside {file} for {tensor}",
)
OUTSIDE = [
    "../x.safetensors",
    "a/../../x.safetensors",
    "a/../x.safetensors",
    "..\\x.safetensors",
    "a\\..\\..\\x.safetensors",
    "/etc/x.safetensors",
    "//host/share/x.safetensors",
    "\\x.safetensors",
    "\\\\host\\share\\x.safetensors",
    "C:x.safetensors",
    "c:/x.safetensors",
    "C:\\x.safetensors",
    "a\0.safetensors",
    "\0.safetensors",
]


def read(files: object, *, subfolders: bool = True) -> dict[str, str]:
    return weight_map({"weight_map": files}, WORDS, path="index", ending=".safetensors", subfolders=subfolders)


def test_a_weight_map_comes_back_as_it_is() -> None:
    files = {"b": "model-1.safetensors", "a": "..model.safetensors", "é": "größe.safetensors"}
    assert read(files) == read(files, subfolders=False) == files
    assert read({"a": "x/y/1.safetensors"}) == {"a": "x/y/1.safetensors"}


@pytest.mark.parametrize("name", OUTSIDE)
def test_names_that_lead_out_of_the_folder(name: str) -> None:
    for subfolders in (True, False):
        with pytest.raises(KQuantError) as refusal:
            read({"good": "x.safetensors", "t": name}, subfolders=subfolders)
        assert str(refusal.value) == f"index outside {name!r} for 't'"


def test_backslashes_and_where_there_are_none_folders() -> None:
    with pytest.raises(KQuantError, match="outside"):
        read({"a": "x\\y.safetensors"})
    for name in ("x/y.safetensors", "./y.safetensors"):
        assert read({"a": name})
        with pytest.raises(KQuantError, match="outside"):
            read({"a": name}, subfolders=False)


@pytest.mark.parametrize("name", [3, None, ["x.safetensors"], "", "x.bin", "/etc/passwd", "..", "safetensors"])
def test_names_of_other_files(name: object) -> None:
    with pytest.raises(KQuantError) as refusal:
        read({"t": name})
    assert str(refusal.value) == f"index no .safetensors file {name!r} for 't'"


@pytest.mark.parametrize("files", [{}, [], None, "x.safetensors", 3])
def test_no_weight_map(files: object) -> None:
    with pytest.raises(KQuantError, match="index no map"):
        read(files)
    with pytest.raises(KQuantError, match="index no map"):
        weight_map({}, WORDS, path="index", ending=".bin", subfolders=True)
