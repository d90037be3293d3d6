"""A stranger's basis, the orthonormal DST-I: one class, and every command knows it."""

import pytest
import torch

from kquant_cli.bases import BASES, make_basis
from kquant_cli.bases.basis import GeneratedBasis


class DST(GeneratedBasis):
    """Q[j, k] = sqrt(2 / (n + 1)) sin(pi (j + 1) (k + 1) / (n + 1)), symmetric."""

    def make_tables(self, device, dtype):
        k = torch.arange(1, self.size + 1, dtype=torch.float64)
        return ((torch.pi / (self.size + 1) * k * k[:, None]).sin() * (2 / (self.size + 1)) ** 0.5).to(device, dtype)

    def rows(self, x, tables, adjoint):
        return x @ tables

    def columns(self, x, tables, adjoint):
        return tables @ x


@pytest.fixture(autouse=True)
def registered(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(BASES, "dst", DST)


def test_it_is_a_basis():
    q = make_basis("dst", 12).dense()
    torch.testing.assert_close(q @ q.T, torch.eye(12, dtype=torch.float64), rtol=0, atol=1e-12)


def test_every_command_knows_it(kquant, opt, read, tmp_path):
    out, dense, file = tmp_path / "b", tmp_path / "d", tmp_path / "out.json"
    assert "dst" in kquant("compress", "--help").out
    assert "or 'dst'; did you mean `dst`" in kquant("compress", opt, "--encoder", "greedy", "--basis", "dstt").err
    flags = ("--encoder", "greedy", "--basis", "dst", "--max-iter", 60, "--exclude", "*.layers.[123].*")
    assert kquant("compress", opt, *flags, "--bits", 3.5, "--dry-run", "--json", file).code == 0
    assert len({plan["levels"] for plan in read(file)["layers"]}) > 1
    assert kquant("compress", opt, *flags, "-o", out, "--json", file).code == 0
    assert read(file)["relative_squared_error"] < 0.05
    assert "model.decoder.*, dst" in kquant("inspect", out).out
    assert kquant("decompress", out, "-o", dense).code == 0
    assert kquant("eval", dense, "--task", "demo", "--limit", 4, "--against", out, "--json", file).code == 0
    assert read(file)["results"][0]["against"]["kl_divergence"]["value"] < 1e-6
