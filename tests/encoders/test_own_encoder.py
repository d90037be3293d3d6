"""A stranger's encoder, 16 fixed levels times the largest entry of a group as in NF4: every command knows it."""

import torch
from pydantic import Field
from scipy.stats import norm

from kquant_cli.codebooks import nearest
from kquant_cli.encoded import EncodedMatrix, Layout, Record
from kquant_cli.encoders import ENCODERS, Encoder, EncoderSettings

LEVELS = torch.tensor(norm.ppf([(k + 0.5) / 16 for k in range(16)]) / norm.ppf(15.5 / 16)).float().unsqueeze(1)


class NF4Settings(EncoderSettings):
    nf4_group: int = Field(64, ge=1, description="columns that share a scale")


class NF4(Encoder[NF4Settings]):
    name, summary, Settings = "nf4", "16 quantiles of a Gaussian", NF4Settings

    def refusal(self, levels, settings):
        return None if levels == 16 else f"`encoder: nf4` cannot have {levels} levels, expected 16"

    def layout(self, shape, levels, settings):
        group = settings.nf4_group
        return Layout(shape, levels, columns=1, scale=(shape[0], shape[1] // group), group=group)

    def encode(self, weight, levels, settings):
        groups = weight.unflatten(1, (-1, settings.nf4_group))
        scale = groups.abs().amax(-1).half()
        codes = nearest((groups / scale[..., None]).reshape(-1, 1), LEVELS).view(weight.shape)
        layout = self.layout(tuple(weight.shape), levels, settings)
        return EncodedMatrix(layout, codes, LEVELS, scale, record=Record("nf4", levels))

    def expected_error(self, levels, settings):
        return 0.011


def test_every_command_knows_it(kquant, opt, read, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(ENCODERS, "nf4", NF4())
    out, dense, file, nf4 = tmp_path / "b", tmp_path / "d", tmp_path / "out.json", ("--encoder", "nf4")
    assert "--nf4-group" in kquant("compress", "--help").out
    assert "cannot have 8 levels, expected 16" in kquant("compress", opt, *nf4, "--bits", 3).err
    (tmp_path / "c.yaml").write_text("layers: [{match: '*fc2', encoder: nf4, bits: 4}]\nbits: 3.5")
    assert kquant("compress", opt, "--config", tmp_path / "c.yaml", "--dry-run", "--json", file).code == 0
    assert {plan["levels"] for plan in read(file)["layers"] if plan["encoder"] == "nf4"} == {16}
    assert "24 matrices with 16" in kquant("compress", opt, *nf4, "--bits", 4.9, "--dry-run").out
    assert kquant("compress", opt, *nf4, "--nf4-group", 32, "-o", out, "--json", file).code == 0
    assert read(file)["relative_squared_error"] < 0.02
    assert "nf4" in kquant("inspect", out).out
    assert kquant("decompress", out, "-o", dense).code == 0
    assert kquant("eval", dense, "--task", "demo", "--limit", 4, "--against", out, "--json", file).code == 0
    assert read(file)["results"][0]["against"]["kl_divergence"]["value"] < 1e-6
