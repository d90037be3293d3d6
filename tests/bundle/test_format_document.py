"""docs/format.md suffices: a reader written from that page alone decodes what kquant wrote.

The first part imports nothing of kquant. It is to follow the page, not the code.
"""

import itertools
import json
import math
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.random import RandomState
from safetensors.numpy import load_file

KEYS = {"shape", "levels", "dtype", "frame", "columns", "scale", "group", "col_scale", "channel_scale"}
KEYS |= {"channel_scale_from", "transposed", "grid", "exponent"}
PAGE = Path(__file__).parents[2] / "docs" / "format.md"


class Reader:
    """A bundle: `weight(name)` is the decoded weight as the source stores it, in float64."""

    def __init__(self, folder: Path) -> None:
        quantization = json.loads((folder / "config.json").read_text())["quantization_config"]
        assert quantization["quant_method"] == "kashin"
        assert quantization["format_version"] in (2, 3, 4)
        self.modules: dict[str, dict[str, Any]] = quantization["modules"]
        index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
        shards = {file: load_file(folder / file) for file in set(index.values())}
        self.tensors = {name: shards[file][name] for name, file in index.items()}

    def weight(self, name: str) -> np.ndarray:
        entry = self.modules[name]
        assert set(entry) <= KEYS
        (m, n), levels, frame = entry["shape"], entry["levels"], entry.get("frame", {})
        codes = unpacked(self.tensors[f"{name}.weight_codes"], levels, n)
        assert codes.shape == (m, n)
        if "grid" in entry:
            assert f"{name}.weight_codebook" not in self.tensors
            book = constant_codebook(entry["grid"]) * 2.0 ** (entry.get("exponent", 0) - 7)
        else:
            book = self.tensors[f"{name}.weight_codebook"].astype(np.float64)
        assert book.shape == (levels, entry.get("columns", 2))
        column_scale = self.scale(name, "col") if entry.get("col_scale") else np.ones(n)
        weight = np.zeros((m, n))
        for values, side in zip(book.T, ("u", "v"), strict=False):
            left, right = frame.get(f"left_{side}"), frame.get(f"right_{side}")
            term = values[codes] * column_scale
            term = term if right is None else term @ basis(right, n).T
            weight += term if left is None else basis(left, m) @ term
        if "scale" in entry:
            scale = self.tensors[f"{name}.weight_scale"].astype(np.float64)
            assert list(scale.shape) == entry["scale"]
            weight *= scale[:, np.arange(n) // entry["group"]] if entry.get("group") else scale
        if entry.get("channel_scale"):
            weight /= self.scale(entry.get("channel_scale_from", name), "channel")
        return weight.T if entry.get("transposed") else weight

    def scale(self, name: str, kind: str) -> np.ndarray:
        return self.tensors[f"{name}.weight_{kind}_scale"].astype(np.float64)


def constant_codebook(name: str) -> np.ndarray:
    """The integers (K, 2), as the page prints them; of an even K it prints the first half."""
    text = PAGE.read_text(encoding="utf-8")
    (printed,) = re.findall(rf"^{name}:((?:\s+\(-?\d+, -?\d+\))+)", text, re.MULTILINE)
    points = np.array([[int(x), int(y)] for x, y in re.findall(r"\((-?\d+), (-?\d+)\)", printed)])
    return np.concatenate([points, -points]) if int(name.removeprefix("ring-")) % 2 == 0 else points


def word(levels: int) -> tuple[int, int]:
    """(d, s)."""
    best = (math.inf, 0, 0)
    for s in range(1, 8):
        d = max(d for d in range(1, 57) if levels**d <= 256**s)
        best = min(best, (s / d, s, d))
    return best[2], best[1]


def packed(codes: list[int], levels: int) -> list[int]:
    d, s = word(levels)
    w = -(-len(codes) // d)
    padded = codes + [0] * (w * d - len(codes))
    words = [sum(padded[i * w + t] * levels**i for i in range(d)) for t in range(w)]
    return [words[t] >> 8 * j & 255 for j in range(s) for t in range(w)]


def unpacked(rows: np.ndarray, levels: int, columns: int) -> np.ndarray:
    d, s = word(levels)
    w = -(-columns // d)
    assert rows.shape[1] == w * s
    pieces = rows.reshape(len(rows), s, w).astype(np.uint64)
    words = sum(pieces[:, j] << np.uint64(8 * j) for j in range(s))
    codes = [words // np.uint64(levels**i) % np.uint64(levels) for i in range(d)]
    return np.concatenate(codes, axis=1)[:, :columns].astype(int)


def signs(draws: RandomState, n: int) -> np.ndarray:
    return np.where(draws.random_sample(n) < 0.5, 1.0, -1.0)


def dct(n: int) -> np.ndarray:
    j = np.arange(n)
    scale = np.where(j == 0, math.sqrt(1 / n), math.sqrt(2 / n))
    return scale * np.cos(math.pi * (2 * j[:, None] + 1) * j / (2 * n))


def sylvester(order: int) -> np.ndarray:
    return np.array([[(-1.0) ** bin(i & j).count("1") for j in range(order)] for i in range(order)])


@cache
def hadamard_dct(n: int) -> np.ndarray:
    power = n & -n
    return np.kron(sylvester(power) / math.sqrt(power), dct(n // power))


def hadamard(n: int) -> np.ndarray:
    for b in (b for b in range(n, 0, -1) if n % b == 0):
        power = b & -b
        while power:
            p = b // power
            if p == 1 or paley(p) is not None:
                h = np.kron(sylvester(power), np.eye(1) if p == 1 else paley(p))
                return np.kron(np.eye(n // b), h / math.sqrt(b))
            power //= 2
    raise AssertionError


def paley(p: int) -> np.ndarray | None:
    q = p - 1
    if p % 4 == 0 and is_power_of_an_odd_prime(q):
        return np.eye(p) + bordered(q, -1)
    q = p // 2 - 1
    if p % 4 == 0 and q % 4 == 1 and is_power_of_an_odd_prime(q):
        return np.kron(bordered(q, 1), [[1, 1], [1, -1]]) + np.kron(np.eye(q + 1), [[1, -1], [-1, -1]])
    return None


def bordered(q: int, first_column: int) -> np.ndarray:
    return np.block([[np.zeros((1, 1)), np.ones((1, q))], [np.full((q, 1), first_column), jacobsthal(q)]])


def is_power_of_an_odd_prime(q: int) -> bool:
    prime = next((d for d in range(2, q + 1) if q % d == 0), 0)
    return prime > 2 and prime ** round(math.log(q, prime)) == q


def jacobsthal(q: int) -> np.ndarray:
    p = next(d for d in range(2, q + 1) if q % d == 0)
    k = round(math.log(q, p))

    def digits(number: int, length: int) -> list[int]:
        return [number // p**i % p for i in range(length)]

    def product(a: list[int], b: list[int]) -> list[int]:
        result = [0] * (len(a) + len(b) - 1)
        for (i, x), (j, y) in itertools.product(enumerate(a), enumerate(b)):
            result[i + j] = (result[i + j] + x * y) % p
        return result

    monic = [[digits(number, d + 1) for number in range(p**d, 2 * p**d)] for d in range(k + 1)]
    reducible = [product(f, g) for d in range(1, k) for f in monic[d] for g in monic[k - d]]
    modulus = next(f for f in monic[k] if f not in reducible)

    def squared(a: int) -> int:
        c = product(digits(a, k), digits(a, k))
        for top in range(len(c) - 1, k - 1, -1):
            c[top - k : top + 1] = [(x - c[top] * y) % p for x, y in zip(c[top - k : top + 1], modulus, strict=True)]
        return sum(x * p**i for i, x in enumerate(c[:k]))

    squares = {squared(a) for a in range(1, q)}

    def chi(a: int, b: int) -> int:
        difference = sum((x - y) % p * p**i for i, (x, y) in enumerate(zip(digits(a, k), digits(b, k), strict=True)))
        return 0 if difference == 0 else 1 if difference in squares else -1

    return np.array([[chi(a, b) for b in range(q)] for a in range(q)])


def turned(x: np.ndarray, i: int, j: int, angle: float) -> None:
    x[i], x[j] = math.cos(angle) * x[i] - math.sin(angle) * x[j], math.sin(angle) * x[i] + math.cos(angle) * x[j]


def butterfly(draws: RandomState, n: int, count: int) -> np.ndarray:
    x, e = np.eye(n), math.ceil(math.log2(n))
    for _ in range(count):
        for layer in range(e):
            angles = 2 * math.pi * draws.random_sample(2 ** (e - 1))
            lower = [i for i in range(2**e) if not i >> layer & 1]
            for i, angle in zip(lower, angles, strict=True):
                if i + 2**layer < n:
                    turned(x, i, i + 2**layer, angle)
        x = x[np.argsort(draws.random_sample(n), kind="stable")]
    return x


def givens(draws: RandomState, n: int, count: int) -> np.ndarray:
    x = np.eye(n)
    first = np.floor(n * draws.random_sample(count)).astype(int)
    second = np.floor((n - 1) * draws.random_sample(count)).astype(int)
    second += second >= first
    for i, j, angle in zip(first, second, 2 * math.pi * draws.random_sample(count), strict=True):
        turned(x, i, j, angle)
    return x


def householder(draws: RandomState, n: int, count: int) -> np.ndarray:
    x = np.eye(n)
    for h in draws.standard_normal((count, n)):
        x -= 2 / (h @ h) * np.outer(h, h @ x)
    return x


def random_orthogonal(draws: RandomState, n: int) -> np.ndarray:
    q, r = np.linalg.qr(draws.standard_normal((n, n)))
    return q * np.sign(np.diag(r))


def basis(spec: dict[str, Any], n: int) -> np.ndarray:
    assert set(spec) <= {"kind", "size", "seed", "options"}
    assert spec["size"] == n
    draws, count = RandomState(spec.get("seed", 0)), spec.get("options", {}).get("count")
    made: dict[str, Callable[[], np.ndarray]] = {
        "identity": lambda: np.eye(n),
        "dct": lambda: dct(n),
        "hadamard": lambda: hadamard(n),
        "signed_hadamard": lambda: signs(draws, n)[:, None] * hadamard(n),
        "signed_dct_ii": lambda: signs(draws, n)[:, None] * dct(n),
        "signed_dct": lambda: dct(n) * signs(draws, n) @ dct(n).T,
        "hadamard_dct": lambda: hadamard_dct(n),
        "signed_hadamard_dct": lambda: signs(draws, n)[:, None] * hadamard_dct(n),
        "twice_signed_hadamard_dct": lambda: (
            signs(draws, n)[:, None] * hadamard_dct(n) * signs(draws, n) @ hadamard_dct(n).T
        ),
        "butterfly": lambda: butterfly(draws, n, count or 3),
        "householder": lambda: householder(draws, n, count or 1),
        "givens": lambda: givens(draws, n, count or n),
        "qr": lambda: random_orthogonal(draws, n),
    }
    return made[spec["kind"]]()


# The tests; from here on kquant writes, and decodes for comparison.


def compressed(source: Path, folder: Path, **settings: object) -> Path:
    from kquant_cli.checkpoint import open_checkpoint
    from kquant_cli.compress import pipeline
    from kquant_cli.compress.plan import make_plan
    from kquant_cli.config import CompressConfig

    pipeline.compress(make_plan(open_checkpoint(source), CompressConfig(**settings)), folder)
    return folder


def assert_decodes(folder: Path) -> Reader:
    """Every matrix is decoded as `open_bundle` decodes it, and each once."""
    import torch

    from kquant_cli.bundle import open_bundle

    bundle, reader = open_bundle(folder), Reader(folder)
    assert set(reader.modules) == set(bundle.layouts)
    for name in reader.modules:
        expected = bundle.weight(name, torch.float32).double().numpy()
        found = reader.weight(name)
        assert np.linalg.norm(found - expected) <= 1e-6 * np.linalg.norm(expected), name
    return reader


def test_the_default_bundle(demo_bundle):
    reader = assert_decodes(demo_bundle)
    table = reader.modules.pop("model.decoder.embed_tokens")
    assert (table["levels"], table["columns"], table["group"], "frame" in table) == (256, 1, 64, False)
    assert {entry["frame"]["right_u"]["kind"] for entry in reader.modules.values()} == {"signed_hadamard_dct"}
    assert {entry["grid"] for entry in reader.modules.values()} == {"ring-16"}


def test_a_uniform_bundle(tmp_path):
    from kquant_cli.demo import demo_model_path

    folder = compressed(demo_model_path(), tmp_path / "b", encoder="uniform", bits=3, group_size=96, calibration="none")
    reader = assert_decodes(folder)
    groups = {name: entry["group"] for name, entry in reader.modules.items() if entry["columns"] == 1}
    assert groups == dict.fromkeys(reader.modules, 96) | {"model.decoder.embed_tokens": 64}


def test_channel_scales_that_layers_share(tiny_llama, tmp_path):
    reader = assert_decodes(
        compressed(tiny_llama, tmp_path / "b", levels=5, effort="fast", calibration="random", seed=3)
    )
    assert any("channel_scale_from" in entry for entry in reader.modules.values())


@pytest.mark.parametrize(
    "settings",
    [
        {"levels": 6, "side": "output", "effort": "fast", "calibration": "random"},
        {"encoder": "greedy", "bits": 3, "max_iter": 30},
        {"encoder": "kmeans", "bits": 2, "calibration": "none"},
    ],
    ids=["annealed columns", "greedy", "kmeans"],
)
def test_transposed_matrices(settings, tmp_path):
    import tiny_models

    source = tiny_models.make("gpt2", tmp_path / "gpt2")
    reader = assert_decodes(compressed(source, tmp_path / "b", **settings))
    assert all(entry["transposed"] for entry in reader.modules.values())


def test_constant_codebooks_are_those_of_the_page():
    from kquant_cli.codebooks.integer_grids import integer_grids

    for name, points in integer_grids().items():
        assert constant_codebook(name).tolist() == [list(point) for point in points]


def test_the_worked_bytes_are_those_of_the_page(pytestconfig):
    page = (pytestconfig.rootpath / "docs" / "format.md").read_text(encoding="utf-8")
    for levels, codes in ((16, [1, 2, 3, 4, 5, 6]), (3, [2, 1, 0, 2, 1, 0, 2]), (8, [0, 1, 2, 3, 4, 5, 6, 7, 1])):
        found = packed(codes, levels)
        assert f"`{' '.join(f'{byte:02x}' for byte in found)}`" in page
        assert unpacked(np.array([found], dtype=np.uint8), levels, len(codes)).tolist() == [codes]


def test_the_words_are_those_of_the_page(pytestconfig):
    page = (pytestconfig.rootpath / "docs" / "format.md").read_text(encoding="utf-8")
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| ") and line[2].isdigit()]
    assert len(rows) == 15
    for levels, digits, size, bits in rows:
        assert word(int(levels)) == (int(digits), int(size))
        assert float(bits) == pytest.approx(8 * int(size) / int(digits), abs=6e-4)


@pytest.mark.parametrize("kind", ["hadamard", "signed_hadamard", "hadamard_dct", "signed_dct_ii", "signed_dct", "dct"])
@pytest.mark.parametrize("n", [12, 20, 36, 40, 60])
def test_fast_bases_are_those_of_the_page(kind, n):
    """12 = 11 + 1, 20 = 19 + 1, 36 = 2 (17 + 1), 40 = 2 * 20; 60 = 59 + 1 and 2 (29 + 1)."""
    assert_same_basis(kind, n)


@pytest.mark.parametrize("n", [28, 52, 100, 44])
def test_hadamard_matrices_over_fields_are_those_of_the_page(n):
    """28 = 27 + 1 over GF(3^3); 52 = 2 (25 + 1) over GF(5^2); 100 = 2 (49 + 1) over GF(7^2); 44 = 43 + 1."""
    assert_same_basis("hadamard", n)


@pytest.mark.parametrize("kind", ["butterfly", "householder", "givens", "qr", "twice_signed_hadamard_dct"])
@pytest.mark.parametrize("options", [{}, {"count": 2}])
@pytest.mark.parametrize("n", [2, 7, 16, 21])
def test_random_bases_are_those_of_the_page(kind, options, n):
    assert_same_basis(kind, n, **(options if kind in ("butterfly", "householder", "givens") else {}))


def test_blocks_where_no_hadamard_matrix_has_the_size():
    assert_same_basis("hadamard", 10)
    assert np.count_nonzero(basis({"kind": "hadamard", "size": 10}, 10)) == 20


def test_the_first_signs_are_those_of_the_page():
    assert signs(RandomState(0), 8).tolist() == [-1, -1, -1, -1, 1, -1, 1, -1]


def assert_same_basis(kind: str, n: int, **options: int) -> None:
    from kquant_cli.bases import make_basis

    spec = {"kind": kind, "size": n, "seed": 5, "options": options}
    assert np.abs(basis(spec, n) - make_basis(kind, n, 5, **options).dense().numpy()).max() < 1e-12
