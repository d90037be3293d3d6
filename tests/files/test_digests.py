"""SHA-256 of files and the bytes of tensors, against their definitions."""

import tracemalloc
from hashlib import sha256
from pathlib import Path

import pytest
import torch

from kquant_cli.files.digests import add_file, file_sha256
from kquant_cli.files.tensor_bytes import tensor_bytes


@pytest.mark.parametrize("content", [b"", b"abc", bytes(range(256)) * 5000])
def test_a_file_alone_and_after_something_else(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").write_bytes(content)
    assert file_sha256(tmp_path / "x") == sha256(content).hexdigest()
    digest = sha256(b"before")
    add_file(digest, tmp_path / "x")
    digest.update(b"after")
    assert digest.hexdigest() == sha256(b"before" + content + b"after").hexdigest()


def test_a_known_digest(tmp_path: Path) -> None:
    """FIPS 180-2, appendix B.1."""
    (tmp_path / "x").write_bytes(b"abc")
    assert file_sha256(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_file_is_not_held_in_memory(tmp_path: Path) -> None:
    with (tmp_path / "x").open("wb") as file:
        file.truncate(32 << 20)
    tracemalloc.start()
    file_sha256(tmp_path / "x")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20


def test_what_cannot_be_read_comes_through(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        file_sha256(tmp_path / "none")


def test_the_bytes_of_a_tensor() -> None:
    tensor = torch.arange(12, dtype=torch.int16).reshape(3, 4)
    assert bytes(tensor_bytes(tensor)) == tensor.numpy().tobytes()
    assert bytes(tensor_bytes(tensor.T)) == tensor.numpy().T.tobytes()
    assert bytes(tensor_bytes(tensor[:, ::2])) == tensor.numpy()[:, ::2].tobytes()
    assert bytes(tensor_bytes(torch.tensor(2.5))) == torch.tensor(2.5).numpy().tobytes()
    assert bytes(tensor_bytes(torch.zeros(0, 4))) == b""
    assert bytes(tensor_bytes(torch.nn.Parameter(torch.ones(2)))) == torch.ones(2).numpy().tobytes()
    assert bytes(tensor_bytes(torch.tensor([1.0], dtype=torch.bfloat16))) == b"\x80\x3f"
