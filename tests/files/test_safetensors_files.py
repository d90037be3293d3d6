"""Our reader and writer against the safetensors library, against files damaged in every way, and without space."""

import hashlib
import json
import os
import struct
from pathlib import Path

import pytest
import safetensors
import torch
from safetensors.torch import load_file, save_file

from kquant_cli.errors import KQuantError
from kquant_cli.files.safetensors_format import DTYPES
from kquant_cli.files.safetensors_reader import read_chunks, read_header, read_tensor
from kquant_cli.files.safetensors_writer import tensor_file


def one_of_each() -> dict[str, torch.Tensor]:
    """A tensor of every data type, with an empty one, a scalar, and names outside ASCII."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, dtype in DTYPES.items():
        if dtype == torch.bool:
            tensors[name] = torch.rand(5, 3, generator=generator) < 0.5
        elif dtype.is_floating_point or dtype.is_complex:
            tensors[name] = torch.randn(5, 3, generator=generator).to(dtype)
        else:
            tensors[name] = torch.randint(0, 100, (5, 3), generator=generator).to(dtype)
    return {
        **tensors,
        "empty": torch.zeros(0, 4, dtype=torch.float16),
        "scalar": torch.tensor(2.5),
        "größe": torch.ones(1),
    }


def bits(tensor: torch.Tensor) -> tuple[torch.dtype, tuple[int, ...], bytes]:
    return tensor.dtype, tuple(tensor.shape), tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def write(path: Path, tensors: dict[str, torch.Tensor], order: list[str] | None = None) -> Path:
    entries = [(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()]
    with tensor_file(path, entries) as file:
        for name in order or tensors:
            file.write(name, tensors[name])
    return path


def raw_file(path: Path, header: object, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def open_handles() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_reads_what_the_library_saved(tmp_path):
    tensors = one_of_each()
    save_file(tensors, tmp_path / "x.safetensors")
    header = read_header(tmp_path / "x.safetensors")
    assert header.keys() == tensors.keys()
    for name, tensor in tensors.items():
        info = header[name]
        assert (info.dtype, info.shape, info.numel) == (tensor.dtype, tuple(tensor.shape), tensor.numel())
        assert info.nbytes == tensor.numel() * tensor.element_size()
        assert bits(read_tensor(info)) == bits(tensor), name


def test_the_library_loads_what_was_written(tmp_path):
    tensors = one_of_each()
    path = write(tmp_path / "x.safetensors", tensors)
    loaded = load_file(path)
    assert {name: bits(tensor) for name, tensor in loaded.items()} == {n: bits(t) for n, t in tensors.items()}
    with safetensors.safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt"}
    assert {name: bits(read_tensor(info)) for name, info in read_header(path).items()} == {
        name: bits(tensor) for name, tensor in tensors.items()
    }


def test_the_bytes_do_not_depend_on_any_order(tmp_path):
    tensors = one_of_each()
    names = list(tensors)
    first = write(tmp_path / "a", tensors)
    second = write(tmp_path / "b", {name: tensors[name] for name in reversed(names)}, names[3:] + names[:3])
    assert first.read_bytes() == second.read_bytes()


def test_the_bytes_are_pinned(tmp_path):
    tensors = {"b": torch.arange(3, dtype=torch.uint8), "a.weight": torch.tensor([[1.0, -2.0]])}
    header = (
        b'{"__metadata__":{"format":"pt"},"a.weight":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]},'
        b'"b":{"dtype":"U8","shape":[3],"data_offsets":[8,11]}}'
    )
    header += b" " * (-len(header) % 8)
    data = struct.pack("<ff", 1.0, -2.0) + bytes([0, 1, 2])
    assert write(tmp_path / "x", tensors).read_bytes() == struct.pack("<Q", len(header)) + header + data


def test_every_tensor_is_aligned_to_its_elements(tmp_path):
    for info in read_header(write(tmp_path / "x", one_of_each())).values():
        assert info.begin % info.dtype.itemsize == 0, info


def test_strided_and_gradient_carrying_tensors_are_written_by_value(tmp_path):
    strided = torch.arange(12.0).reshape(3, 4).t()
    parameter = torch.nn.Parameter(torch.ones(2))
    path = write(tmp_path / "x", {"strided": strided, "parameter": parameter})
    assert torch.equal(load_file(path)["strided"], strided)
    assert torch.equal(load_file(path)["parameter"], torch.ones(2))


def test_a_tensor_read_stands_on_its_own(tmp_path):
    path = write(tmp_path / "x", {"a": torch.ones(4)})
    info = read_header(path)["a"]
    tensor = read_tensor(info)
    tensor.add_(1)
    path.unlink()
    assert torch.equal(tensor, torch.full((4,), 2.0))


def test_chunks_cover_the_tensor(tmp_path):
    tensor = torch.arange(1000, dtype=torch.int16)
    info = read_header(write(tmp_path / "x", {"pad": torch.ones(3), "a": tensor}))["a"]
    chunks = list(read_chunks(info, size=768))
    assert [len(chunk) for chunk in chunks] == [768, 768, 464]
    assert b"".join(chunks) == tensor.numpy().tobytes()


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("b", torch.ones(2), "not an entry"),
        ("a", torch.ones(3), "shape"),
        ("a", torch.ones(2, dtype=torch.float16), "float16"),
    ],
)
def test_the_writer_refuses_what_does_not_fit(tmp_path, name, tensor, message):
    with pytest.raises(ValueError, match=message), tensor_file(tmp_path / "x", [("a", torch.float32, (2,))]) as f:
        f.write(name, tensor)


def test_the_writer_wants_each_entry_exactly_once(tmp_path):
    entries = [("a", torch.float32, (2,)), ("b", torch.float32, (2,))]
    with pytest.raises(ValueError, match="already written"), tensor_file(tmp_path / "x", entries) as file:
        file.write("a", torch.ones(2))
        file.write("a", torch.ones(2))
    with pytest.raises(ValueError, match="never written, 'b'"), tensor_file(tmp_path / "x", entries) as file:
        file.write("a", torch.ones(2))
    for name in ("a", "__metadata__"):
        reserved = [entries[0], (name, torch.float32, (2,))]
        with pytest.raises(ValueError, match="given twice, or reserved"), tensor_file(tmp_path / "y", reserved):
            pass
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_no_space_left_comes_through_and_leaves_no_handle_open():
    before = open_handles()
    with pytest.raises(OSError, match="No space left"), tensor_file(Path("/dev/full"), [("a", torch.float32, (2,))]):
        pass
    assert open_handles() == before


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_an_error_leaves_no_handle_open_no_new_file_and_the_old_one_as_it_was(tmp_path, monkeypatch):
    entries = [("a", torch.float32, (2,))]
    (tmp_path / "x").write_bytes(b"old")
    before = open_handles()
    with pytest.raises(KeyError), tensor_file(tmp_path / "x", entries) as file:
        file.write("a", torch.ones(2))
        raise KeyError("interrupted")
    with pytest.raises(ValueError, match="never written"), tensor_file(tmp_path / "x", entries):
        pass

    def no_space(*_):
        raise OSError(28, "No space left on device")

    for function in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os if function == "fsync" else Path, function, no_space)
            with pytest.raises(OSError, match="No space left"), tensor_file(tmp_path / "x", entries) as file:
                file.write("a", torch.ones(2))
    with pytest.raises(KQuantError):
        read_header(raw_file(tmp_path / "y", b"{"))
    assert open_handles() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x", "y"]
    assert (tmp_path / "x").read_bytes() == b"old"


def test_the_file_is_not_there_before_its_last_tensor(tmp_path):
    with tensor_file(tmp_path / "x", [("a", torch.float32, (2,))]) as file:
        assert not (tmp_path / "x").exists()
        file.write("a", torch.ones(2))
    assert torch.equal(load_file(tmp_path / "x")["a"], torch.ones(2))
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_file_cut_anywhere_is_refused_by_name(tmp_path):
    whole = write(tmp_path / "x.safetensors", {"a": torch.ones(4), "b": torch.ones(2, 2)}).read_bytes()
    path = tmp_path / "cut.safetensors"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(KQuantError, match=r"cut\.safetensors is truncated: it should have .*download it again"):
            read_header(path)


def test_a_truncated_file_states_both_sizes(tmp_path):
    path = write(tmp_path / "x.safetensors", {"a": torch.ones(4)})
    whole = path.read_bytes()
    path.write_bytes(whole[:-3])
    with pytest.raises(KQuantError, match=f"should have {len(whole)} bytes and has {len(whole) - 3};"):
        read_header(path)


def entry(begin, end, shape=(2,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        (b"{", b"", "not JSON"),
        (b"\xff\xfe{}", b"", "not JSON"),
        (b"[" * 100_000, b"", "not JSON"),
        ([1, 2], b"", "not a JSON object"),
        (b'{"a": {}, "a": {}}', b"", "a name occurs twice"),
        ({"a": 3}, b"", "'a' lacks its dtype"),
        ({"a": {"dtype": "F32", "shape": [2]}}, b"", "'a' lacks its dtype"),
        ({"a": entry(0, 8, dtype="F4")}, b"\0" * 8, "'a' has the data type 'F4'"),
        ({"a": entry(0, 8, dtype=["F32"])}, b"\0" * 8, "'a' has the data type"),
        ({"a": entry(0, 8, shape=(-2,))}, b"\0" * 8, "'a' has the shape"),
        ({"a": entry(0, 8, shape=(2.0,))}, b"\0" * 8, "'a' has the shape"),
        ({"a": entry(0, 8, shape=(True, 2))}, b"\0" * 8, "'a' has the shape"),
        ({"a": entry(0, 0, shape=(2**70, 0))}, b"", "'a' has the shape"),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4, 8]}}, b"\0" * 8, "'a' has the shape"),
        ({"a": entry(0, 12)}, b"\0" * 12, "'a' of shape .* spans bytes"),
        ({"a": entry(8, 0)}, b"\0" * 8, "'a' of shape .* spans bytes"),
        ({"a": entry(4, 12)}, b"\0" * 12, "data of tensor 'a' begin at byte"),
        ({"a": entry(0, 8), "b": entry(4, 12)}, b"\0" * 12, "data of tensor 'b' begin at byte"),
        ({"a": entry(0, 8)}, b"\0" * 9, "where its header describes"),
    ],
)
def test_a_damaged_header_is_refused_by_name(tmp_path, header, data, message):
    with pytest.raises(KQuantError, match=message) as refusal:
        read_header(raw_file(tmp_path / "x.safetensors", header, data))
    assert "x.safetensors" in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_an_absurd_header_length_is_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"PK\x03\x04 is a zip, not this format" * 3)
    with pytest.raises(KQuantError, match=r"x\.safetensors is not a valid safetensors file: its header would be"):
        read_header(path)


def test_a_git_lfs_pointer_is_named_for_what_it_is(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{hashlib.sha256().hexdigest()}\nsize 9\n")
    with pytest.raises(KQuantError, match=r"model\.safetensors is a Git LFS pointer.*git lfs pull"):
        read_header(path)


def test_missing_and_shortened_files_are_named(tmp_path):
    with pytest.raises(KQuantError, match=r"cannot read .*nothing\.safetensors: No such file"):
        read_header(tmp_path / "nothing.safetensors")
    path = write(tmp_path / "x.safetensors", {"a": torch.ones(4)})
    info = read_header(path)["a"]
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(KQuantError, match=r"tensor 'a' from .*x\.safetensors: the file ends before byte"):
        read_tensor(info)
    path.unlink()
    with pytest.raises(KQuantError, match=r"tensor 'a' from .*x\.safetensors: No such file"):
        read_tensor(info)


def test_the_sha256_is_that_of_the_file_where_it_was_written_in_order(tmp_path):
    tensors = {"b": torch.ones(3), "a": torch.zeros(2, dtype=torch.int8), "c": torch.empty(0, 4), "d": torch.ones(5)}
    entries = [(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()]
    with tensor_file(tmp_path / "x", entries) as file:
        assert file.order == ("b", "c", "d", "a")
        with pytest.raises(ValueError, match="all tensors"):
            _ = file.sha256
        for name in file.order:
            file.write(name, tensors[name])
        digest = file.sha256
    assert digest == hashlib.sha256((tmp_path / "x").read_bytes()).hexdigest()
    with tensor_file(tmp_path / "y", entries) as file:
        for name in ("d", "b", "c", "a"):
            file.write(name, tensors[name])
        with pytest.raises(ValueError, match="in the order"):
            _ = file.sha256
    assert (tmp_path / "y").read_bytes() == (tmp_path / "x").read_bytes()


@pytest.mark.parametrize("durable", [True, False])
def test_a_file_that_need_not_be_durable_is_not_synced(tmp_path, monkeypatch, durable):
    calls = []
    monkeypatch.setattr(os, "fsync", calls.append)
    with tensor_file(tmp_path / "x", [("a", torch.float32, (2,))], durable=durable) as file:
        file.write("a", torch.ones(2))
    assert len(calls) == durable


def with_header(path, text, data=b""):
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def test_the_number_of_tensors_is_bounded_before_the_header_is_parsed(tmp_path, monkeypatch):
    monkeypatch.setattr("kquant_cli.files.safetensors_reader.MOST_TENSORS", 3)
    entries = [f'"{n}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}' for n in range(4)]
    assert len(read_header(with_header(tmp_path / "x", f"{{{','.join(entries[:3])}}}".encode()))) == 3
    with pytest.raises(KQuantError, match="its header has more than 3 tensors, the most that are read of one file"):
        read_header(with_header(tmp_path / "x", f"{{{','.join(entries)}".encode()))
    with pytest.raises(KQuantError, match="more than 3 tensors"):
        read_header(with_header(tmp_path / "x", b"{" * 8))


@pytest.mark.parametrize(
    "shape",
    [[0] * 65, [0, 1 << 40, 1 << 40], [1 << 47] * 1000 + [0], [(1 << 48) - 1] * 2 + [0]],
    ids=["dimensions", "product", "many", "large"],
)
def test_shapes_that_torch_cannot_have_are_refused_though_they_hold_nothing(tmp_path, shape):
    text = json.dumps({"a": {"dtype": "U8", "shape": shape, "data_offsets": [0, 0]}}).encode()
    with pytest.raises(KQuantError, match=r"tensor 'a' has the shape \[.*\], beyond 64 dimensions or 2\^63") as refusal:
        read_header(with_header(tmp_path / "x", text))
    assert len(str(refusal.value)) < 500 + len(str(tmp_path))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x.safetensors")
    with pytest.raises(KQuantError, match="it is no plain file"):
        read_header(tmp_path / "x.safetensors")


def test_a_name_with_half_a_character_is_refused(tmp_path: Path) -> None:
    """JSON can hold one; neither UTF-8, nor a digest, nor a terminal can."""
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    with pytest.raises(KQuantError, match="half a character"):
        read_header(raw_file(tmp_path / "a.safetensors", {"byte\udcff": entry}, bytes(4)))
