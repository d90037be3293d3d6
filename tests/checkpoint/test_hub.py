"""Models of the hub: from the cache without a network, and from a small hub that speaks the real protocol."""

import errno
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar
from urllib.parse import unquote, urlsplit

import huggingface_hub
import pytest
import tiny_models
import torch
from huggingface_hub import constants
from safetensors.torch import save

from kquant_cli.checkpoint import open_checkpoint, select_matrices
from kquant_cli.errors import KQuantError

COMMIT, OLDER = "a" * 40, "b" * 40


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache, and no network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def put_into_cache(cache: Path, model: str, folder: Path, commit: str, branch: str | None) -> Path:
    """Lay `folder` out as huggingface_hub does: blobs by hash, a snapshot of links to them, and the branch's commit."""
    home = cache / f"models--{model.replace('/', '--')}"
    snapshot = home / "snapshots" / commit
    for directory in (home / "blobs", home / "refs", snapshot):
        directory.mkdir(parents=True, exist_ok=True)
    for file in folder.iterdir():
        blob = home / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
        blob.write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(f"../../blobs/{blob.name}")
    if branch is not None:
        (home / "refs" / branch).write_text(commit)
    return snapshot


def test_a_cached_model_opens_offline(cache, tmp_path):
    folder = tiny_models.make("opt", tmp_path / "opt")
    snapshot = put_into_cache(cache, "owner/tiny-opt", folder, COMMIT, "main")
    checkpoint = open_checkpoint("owner/tiny-opt")
    assert (checkpoint.path, checkpoint.name, checkpoint.revision) == (snapshot, "owner/tiny-opt", COMMIT)
    assert checkpoint.config["model_type"] == "opt"
    assert checkpoint.other_files == (Path("generation_config.json"),)
    assert len(select_matrices(checkpoint).matrices) == 12
    name = "model.decoder.layers.1.fc1.weight"
    assert torch.equal(checkpoint.read(name), tiny_models.build("opt").state_dict()[name])


def test_a_revision_is_a_branch_or_a_commit(cache, tmp_path):
    put_into_cache(cache, "gpt2", tiny_models.make("gpt2", tmp_path / "new"), COMMIT, "main")
    older = put_into_cache(cache, "gpt2", tiny_models.make("gpt2", tmp_path / "old", n_layer=1), OLDER, "v1")
    for revision in ("v1", OLDER):
        checkpoint = open_checkpoint("gpt2", revision)
        assert (checkpoint.path, checkpoint.revision) == (older, OLDER)
    assert open_checkpoint("gpt2").revision == COMMIT


def test_what_is_not_in_the_cache_is_refused_offline(cache, tmp_path):
    put_into_cache(cache, "gpt2", tiny_models.make("gpt2", tmp_path / "new"), COMMIT, "main")
    with pytest.raises(
        KQuantError, match=r"owner/name is neither a folder nor in the local cache.*hf download owner/name"
    ):
        open_checkpoint("owner/name")
    with pytest.raises(KQuantError, match="gpt2 at revision v9 is neither a folder nor in the local cache"):
        open_checkpoint("gpt2", "v9")


def test_a_partly_cached_model_says_what_is_missing(cache, tmp_path):
    folder = tiny_models.make("gpt2", tmp_path / "new")
    (folder / "model.safetensors").unlink()
    put_into_cache(cache, "gpt2", folder, COMMIT, "main")
    with pytest.raises(KQuantError, match=r"^gpt2 \(.*\) holds no weights"):
        open_checkpoint("gpt2")


@pytest.mark.parametrize("name", ["owner/na me", "-owner/name", "owner/..", "a--b/c"])
def test_an_impossible_name_is_refused(cache, name):
    with pytest.raises(KQuantError, match="is neither a folder nor the name of a model"):
        open_checkpoint(name)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_said(cache, monkeypatch, code):
    def full(*_, **__):
        raise OSError(code, os.strerror(code))

    files = [SimpleNamespace(rfilename=name) for name in ("config.json", "model.safetensors")]
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: SimpleNamespace(siblings=files))
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", full)
    with pytest.raises(KQuantError, match=rf"^no space left while downloading 'owner/name' to {cache}: free some"):
        open_checkpoint("owner/name")


CONFIG = b'{"model_type": "llama"}'
WEIGHT = save({"model.layers.0.fc.weight": torch.ones(4, 4)})
INDEX = json.dumps(
    {
        "weight_map": {
            "model.layers.0.fc.weight": "model-00001-of-00002.safetensors",
            "b": "model-00002-of-00002.safetensors",
        }
    }
)
MODELS: dict[str, dict[str, bytes]] = {
    "owner/whole": {
        "config.json": CONFIG,
        "model.safetensors": WEIGHT,
        "pytorch_model.bin": b"x" * 100,
        "tokenizer[1].json": b"{}",
        "LICENSE": b"free",
        "sub/extra.md": b"x",
        **dict.fromkeys((".env", "secret.txt"), b"x"),
        **dict.fromkeys(("flax_model.msgpack", "tf_model.h5", "model.gguf", "onnx/model.onnx", "original/a.pth"), b"x"),
    },
    "owner/shards": {
        "config.json": CONFIG,
        "model.safetensors.index.json": INDEX.encode(),
        "model-00001-of-00002.safetensors": WEIGHT,
        "model-00002-of-00002.safetensors": save({"b": torch.ones(3)}),
        "consolidated.safetensors": b"x",
    },
    "owner/adapter": {"adapter_config.json": b"{}", "adapter_model.safetensors": WEIGHT},
    "owner/quantised": {
        "config.json": b'{"quantization_config": {"quant_method": "awq"}}',
        "model.safetensors": WEIGHT,
    },
    "owner/flax": {"config.json": CONFIG, "flax_model.msgpack": b"x"},
}
WANTED = {
    "owner/whole": {"config.json", "model.safetensors", "tokenizer[1].json", "LICENSE", "sub/extra.md"},
    "owner/shards": set(MODELS["owner/shards"]) - {"consolidated.safetensors"},
}


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as downloading needs: a model's files, its tree, and the files themselves."""

    requested: ClassVar[list[str]] = []

    def do_GET(self):
        self.answer(body=True)

    def do_HEAD(self):
        self.answer(body=False)

    def answer(self, body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        model = "/".join(path.removeprefix("/api/models/").strip("/").split("/")[:2])
        files = MODELS.get(model)
        if path.startswith("/api/models/"):
            if files is None:
                self.reply(404, b"", {"X-Error-Code": "RepoNotFound"}, body)
            elif "/revision/" in path and not path.endswith(("/main", COMMIT)):
                self.reply(404, b"", {"X-Error-Code": "RevisionNotFound"}, body)
            elif "/tree/" in path:
                tree = [{"type": "file", "path": n, "size": len(c), "oid": f"{n:0>40}"} for n, c in files.items()]
                self.reply(200, json.dumps(tree).encode(), {}, body)
            else:
                info = {"id": model, "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]}
                self.reply(200, json.dumps(info).encode(), {}, body)
        elif "/resolve/" not in path:
            self.reply(404, b"", {}, body)  # what the client asks besides
        else:
            name = re.split("/resolve/[^/]+/", path)[1]
            Hub.requested.append(f"{model}/{name}")
            etag = hashlib.sha256(name.encode()).hexdigest()
            self.reply(200, files[name], {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}, body)

    def reply(self, status: int, content: bytes, headers: dict[str, str], body: bool) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_):
        pass


OPEN = """
import json, sys
from kquant_cli.checkpoint import open_checkpoint
from kquant_cli.errors import KQuantError
outcomes = []
for model, revision in json.loads(sys.argv[1]):
    try:
        checkpoint = open_checkpoint(model, revision)
        files = [p.relative_to(checkpoint.path).as_posix() for p in checkpoint.path.rglob("*") if p.is_file()]
        outcomes.append([checkpoint.revision, sorted(checkpoint.tensors), sorted(files)])
    except KQuantError as error:
        outcomes.append(str(error))
print(json.dumps(outcomes))
"""


def open_in_a_process(requests: list[tuple[str, str | None]], cache: Path, endpoint: str) -> list:
    """huggingface_hub reads its settings when imported: hence a process of its own."""
    settings = {"HF_ENDPOINT": endpoint, "HF_HUB_CACHE": str(cache), "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1"}
    settings["HF_HUB_OFFLINE"] = "0"
    done = subprocess.run(
        [sys.executable, "-c", OPEN, json.dumps(requests)],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_downloading_takes_what_is_needed_and_refuses_before_the_weights(tmp_path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    try:
        whole, shards, adapter, quantised, flax, unknown, revision = open_in_a_process(
            [
                ("owner/whole", None),
                ("owner/shards", "main"),
                *((f"owner/{name}", None) for name in ("adapter", "quantised", "flax", "unknown")),
                ("owner/whole", "no-such-branch"),
            ],
            tmp_path,
            endpoint,
        )
    finally:
        server.shutdown()
        server.server_close()
    assert whole == [COMMIT, ["model.layers.0.fc.weight"], sorted(WANTED["owner/whole"])]
    assert shards == [COMMIT, ["b", "model.layers.0.fc.weight"], sorted(WANTED["owner/shards"])]
    assert adapter.startswith("owner/adapter is an adapter")
    assert quantised.startswith("owner/quantised is already quantised with awq")
    assert flax.startswith("owner/flax holds no weights (it holds flax_model.msgpack")
    assert unknown.startswith("'owner/unknown' is neither a folder nor a model on the hub")
    assert revision.startswith("'owner/whole' has no revision 'no-such-branch'")
    wanted = {f"{model}/{name}" for model, names in WANTED.items() for name in names}
    assert set(Hub.requested) == {*wanted, "owner/quantised/config.json"}
    # the hub is gone, the cache remains
    again, missing = open_in_a_process([("owner/shards", None), ("owner/unknown", None)], tmp_path, endpoint)
    assert again == shards
    assert missing.startswith("owner/unknown is neither a folder nor in the local cache, and the hub cannot be reached")
