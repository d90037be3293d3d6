"""What the cases begin from, and what they end in when nothing disturbs them: tiny checkpoints, bundles of them."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
import transformers

from torture_kinds.calls import Calls, Log
from torture_kinds.judge import Tree, tree
from torture_kinds.process import Outcome, Work, kquant, run

HIDDEN, FEED_FORWARD, LAYERS, VOCABULARY = 32, 64, 2, 96
QUICK = ("--effort", "fast", "--calibration", "none")
OTHER = (*QUICK, "--levels", "5")
OWN = ("--effort", "fast", "--calibration", "own", "--calibration-tokens", "256", "--tune-steps", "2")
AVERAGE = ("--effort", "fast", "--calibration", "random", "--bits", "3.25")
CHAT = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
IDS = tuple(range(3, 15))


@dataclass(frozen=True)
class Scenario:
    """A command in a folder: `args` of kquant; what it writes; how it begins (a folder of the world) and ends."""

    name: str
    args: tuple[str, ...]
    output: str
    start: str


def compressing(name: str, flags: tuple[str, ...], start: str = "empty") -> Scenario:
    """`compress source -o out` with these flags."""
    return Scenario(name, ("compress", "source", "-o", "out", *flags), "out", start)


SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        compressing("compress", QUICK),
        compressing("compress another", OTHER),
        compressing("compress with --overwrite", (*QUICK, "--overwrite"), "another there"),
        compressing("compress another with --overwrite", (*OTHER, "--overwrite")),
        compressing("resume", QUICK, "unfinished"),
        compressing("compress on own text", OWN),
        compressing("compress to an average of bits", AVERAGE),
        Scenario("decompress", ("decompress", "bundle", "-o", "out"), "out", "empty"),
        Scenario(
            "decompress with --overwrite", ("decompress", "bundle", "-o", "out", "--overwrite"), "out", "dense there"
        ),
        Scenario("decompress to float16", ("decompress", "bundle", "-o", "out", "--dtype", "float16"), "out", "empty"),
    )
}
HOSTILE = [name for name in SCENARIOS if "another" not in name and "float16" not in name]  # those that are disturbed


@dataclass
class World:
    """The folder that has it all: `starts/NAME`, and the trees that undisturbed commands leave, `ends`."""

    folder: Path
    ends: dict[str, Tree] = field(default_factory=dict)
    calls: dict[tuple[str, str], int] = field(default_factory=dict)  # by scenario and how they are counted

    def start(self, name: str) -> Path:
        """The folder of that name that cases are copied from."""
        return self.folder / "starts" / name

    def begin(self, scenario: Scenario, folder: Path) -> Tree:
        """Copy the start of a scenario to `folder`; what is there then."""
        return self.begin_with(scenario.start, folder)

    def begin_with(self, start: str, folder: Path) -> Tree:
        """Copy the start of that name to `folder`; what is there then."""
        copy(self.start(start), folder)
        return tree(folder)

    def source(self, kind: str) -> Path:
        """A checkpoint: `one` file, `other` weights in one file, `shards` or pickled (`bin`)."""
        return self.folder / "sources" / kind

    def count_calls(self, scenario: Scenario, how: str) -> int:
        """Count the calls of an undisturbed run: `how` is halves or reads, as of `Calls`."""
        folder, log = self.folder / "counting", Log()
        self.begin(scenario, folder)
        require(run(kquant(*scenario.args), folder, inside=watching(folder, log, how)))
        shutil.rmtree(folder)
        return log.count


def watching(folder: Path, log: Log, how: str, strike: object = None) -> Work:
    """Installs `Calls` in a process."""

    def inside() -> None:
        nothing = lambda number, name, path: None  # noqa: E731
        Calls(folder, log, strike or nothing, **{how: True}).install()  # type: ignore[arg-type]

    return inside


def copy(start: Path, folder: Path) -> None:
    """Copy a folder with its links and special files."""
    shutil.copytree(start, folder, symlinks=True)


def require(outcome: Outcome) -> Outcome:
    """The outcome of what must not fail; else the program ends."""
    if outcome.code:
        sys.exit(f"an undisturbed run ends with {outcome.code}:\n{outcome.err}")
    return outcome


def make_world(folder: Path) -> World:
    """Checkpoints, bundles, starts and ends below `folder`; imports whatever a run imports into this process."""
    world = World(folder)
    for part in ("sources", "starts", "ends"):
        (folder / part).mkdir()
    require(run(lambda: _make_sources(folder / "sources"), folder))
    _import_early(folder)
    _make_starts(world)
    for name, scenario in SCENARIOS.items():
        end = folder / "ends" / name
        world.begin(scenario, end)
        require(run(kquant(*scenario.args), end))
        world.ends[name] = tree(end)
    require(run(lambda: _keep_values(world), world.start("empty")))
    for name in HOSTILE:
        for how in ("halves", "reads"):
            world.calls[name, how] = world.count_calls(SCENARIOS[name], how)
    return world


def _make_starts(world: World) -> None:
    """`empty`: source, bundle and bystanders; `another there`, `dense there`, `unfinished`: with an output besides."""
    empty = world.start("empty")
    copy(world.source("one"), empty / "source")
    require(run(kquant("compress", "source", "-o", "bundle", *QUICK), empty))
    (empty / "bystanders").mkdir()
    (empty / "bystanders" / "canary").write_text("not kquant's\n")
    (empty / "out.txt").write_text("not kquant's\n")
    (empty / "link").symlink_to("bystanders")
    for name, flags in {"another there": OTHER, "dense there": None, "unfinished": QUICK}.items():
        copy(empty, start := world.start(name))
        if flags is None:
            require(run(kquant("decompress", "bundle", "-o", "out", "--dtype", "float16"), start))
        elif name == "unfinished":
            half = world.count_calls(SCENARIOS["compress"], "halves") // 2
            run(kquant("compress", "source", "-o", "out", *flags), start, inside=killing(start, Log(), half))
        else:
            require(run(kquant("compress", "source", "-o", "out", *flags), start))


def _keep_values(world: World) -> None:
    """Write what the bundle gives where it is whole, `values/`: its tensors, and the logits of IDS.

    And `altered.safetensors`, a file of weights as the bundle's, with other values.
    """
    import kquant_cli
    from kquant_cli.bundle import open_bundle

    (world.folder / "values").mkdir()
    torch.save(dict(open_bundle("bundle").tensors()), world.folder / "values" / "tensors.pt")
    with torch.inference_mode():
        logits = kquant_cli.load("bundle")(torch.tensor([IDS])).logits
    torch.save(logits.clone(), world.folder / "values" / "logits.pt")
    data = next(Path("bundle").glob("*.safetensors")).read_bytes()
    begin = 8 + int.from_bytes(data[:8], "little")
    altered = data[:begin] + bytes(byte ^ 1 for byte in data[begin:])
    (world.folder / "values" / "altered.safetensors").write_bytes(altered)


def killing(folder: Path, log: Log, number: int) -> Work:
    """Installs a SIGKILL before the call of that number."""

    def strike(n: int, name: str, path: str) -> None:
        if n == number:
            os.kill(os.getpid(), 9)

    return watching(folder, log, "halves", strike)


def _make_sources(folder: Path) -> None:
    torch.set_num_threads(1)
    model = _model(seed=1)
    model.save_pretrained(folder / "one")
    _model(seed=2).save_pretrained(folder / "other")
    model.save_pretrained(folder / "shards", max_shard_size="60KB")
    model.config.save_pretrained(folder / "bin")
    torch.save(model.state_dict(), folder / "bin" / "pytorch_model.bin")
    for source in folder.iterdir():
        _save_tokenizer(source)
        (source / "generation_config.json").write_text('{"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}\n')
        (source / "README.md").write_text("# A tiny model\n")


def _model(seed: int) -> transformers.PreTrainedModel:
    config = transformers.LlamaConfig(
        hidden_size=HIDDEN,
        intermediate_size=FEED_FORWARD,
        num_hidden_layers=LAYERS,
        vocab_size=VOCABULARY,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    draw = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=draw)
        parameter.data = noise / HIDDEN**0.5 if parameter.ndim > 1 else 1 + 0.1 * noise
    return model


def _save_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {"<u>": 0, "<s>": 1, "</s>": 2, **{f"w{i}": i for i in range(3, VOCABULARY)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<u>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    wrapped = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<u>", bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
    wrapped.chat_template = CHAT
    wrapped.save_pretrained(folder)


def _import_early(folder: Path) -> None:
    """Import here what commands import, so that no case has to: a process that ran them says what that is."""
    from kquant_cli.bundle import open_bundle

    names = folder / "modules.json"

    def work() -> None:
        import kquant_cli
        from kquant_cli.cli import main

        out = folder / "early"
        for args in (
            ("compress", folder / "sources" / "one", "-o", out, *OWN),
            ("decompress", out, "-o", folder / "early-dense"),
            ("generate", out, "--prompt", "w3 w4", "--max-new-tokens", "2", "--chat"),
            ("inspect", out),
        ):
            try:
                main([*map(str, args)])
            except SystemExit as stop:
                assert not stop.code, args
        kquant_cli.load(open_bundle(out).path)
        transformers.AutoModelForCausalLM.from_pretrained(out)
        names.write_text(json.dumps(list(sys.modules)))

    require(run(work, folder))
    for name in json.loads(names.read_text()):
        if not name.startswith("__") and name not in sys.modules:
            try:
                importlib.import_module(name)
            except Exception:  # not to be imported by its name
                continue
    for part in folder.glob("early*"):
        shutil.rmtree(part) if part.is_dir() else part.unlink()
