"""The Hub, as a fake on this machine: what is pushed comes back by its commit, and nothing else does."""

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer  # noqa: TID251 - the fake, on this machine
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bygrad.artifacts import ArtifactError, Manifest, describe, find
from bygrad.deploy import hub
from bygrad.deploy.card import model_card

pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed: pip install huggingface_hub")

ABSENT = "0" * 40


class Hub(ThreadingHTTPServer):
    """As much of the Hub as pushing and pulling takes: `commits` maps a commit to its files, `branches` to commits."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.commits: dict[str, dict[str, bytes]] = {}
        self.branches: dict[str, str] = {}
        self.answers_with: dict[str, str] = {}
        self.asked: list[str] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def answer_json(self, value: Any) -> None:
        self.answer(200, json.dumps(value).encode(), Content_Type="application/json")

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.server.asked.append(f"{self.command} {self.path}")
        parts = self.path.split("?")[0].strip("/").split("/")
        match parts:
            case [_, _, "resolve", revision, name]:
                commit = self.server.branches.get(revision, revision)
                data = self.server.commits.get(commit, {}).get(name)
                if data is None:
                    code = "EntryNotFound" if commit in self.server.commits else "RevisionNotFound"
                    return self.answer(404, X_Error_Code=code)
                etag = hashlib.sha256(data).hexdigest()
                return self.answer(
                    200, data, ETag=f'"{etag}"', X_Repo_Commit=self.server.answers_with.get(commit, commit)
                )
        return self.answer(404)

    def do_POST(self) -> None:
        self.server.asked.append(f"{self.command} {self.path}")
        data = self.body()
        parts = self.path.split("?")[0].strip("/").split("/")
        match parts:
            case ["api", "repos", "create"]:
                return self.answer_json({"url": f"{self.server.address}/me/it"})
            case ["api", "validate-yaml"]:
                return self.answer_json({"errors": [], "warnings": []})
            case ["api", "models", _, _, "branch", _]:
                return self.answer_json({})
            case ["api", "models", _, _, "preupload", _]:
                files = json.loads(data)["files"]
                answer = [{"path": it["path"], "uploadMode": "regular", "shouldIgnore": False} for it in files]
                return self.answer_json({"files": answer})
            case ["api", "models", owner, name, "commit", branch]:
                lines = [json.loads(line)["value"] for line in data.splitlines()]
                files = {it["path"]: base64.b64decode(it["content"]) for it in lines if "content" in it}
                commit = hashlib.sha1(data).hexdigest()
                self.server.commits[commit] = files
                self.server.branches[branch] = commit
                url = f"{self.server.address}/{owner}/{name}/commit/{commit}"
                return self.answer_json({"commitOid": commit, "commitUrl": url, "success": True})
        return self.answer(404)


@pytest.fixture(scope="module")
def server() -> Iterator[Hub]:
    with Hub() as it:
        thread = threading.Thread(target=it.serve_forever, daemon=True)
        thread.start()
        yield it
        it.shutdown()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


def python(server: Hub, home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a process whose Hub is the fake: the library reads where it is when it is imported."""
    environment = os.environ | {
        "HF_ENDPOINT": server.address,
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(home),
        "HF_TOKEN": "hf_fake",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_XET": "1",
        "NO_PROXY": "127.0.0.1",
    }
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, cwd=home)


def bygrad(server: Hub, home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return python(server, home, "-m", "bygrad", *arguments)


@pytest.fixture(scope="module")
def commit(server: Hub, home: Path) -> str:
    done = bygrad(server, home, "push", "paper/quadratic", "me/it", "--revision", "trial")
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.split())
    assert said.startswith("bygrad pull me/it --revision ")
    return said.rsplit(" ", 1)[1]


def test_what_is_pushed_comes_back_by_its_commit(commit, server, home, tmp_path):
    assert server.branches["trial"] == commit
    assert set(server.commits[commit]) == {"optimizer.safetensors", "README.md"}
    assert "# paper/quadratic" in server.commits[commit]["README.md"].decode()
    out = tmp_path / "new" / "it.safetensors"
    done = bygrad(server, home, "pull", "me/it", "--revision", commit, "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert out.read_bytes() == find("paper/quadratic").read_bytes()
    assert "paper/quadratic, a LSTM" in " ".join(done.stdout.split())
    assert not list(home.rglob("*.safetensors"))


PULLS = """
import json, sys
from bygrad.deploy import hub
for name, revision in json.loads(sys.argv[1]).items():
    try:
        hub.pull("me/it", revision=revision, out=f"{sys.argv[2]}/{name}")
    except (ValueError, OSError) as error:
        print(json.dumps([name, type(error).__name__, str(error)]))
"""


def test_what_is_not_that_artifact_is_refused_and_not_written(server, home, tmp_path):
    good = find("paper/quadratic").read_bytes()
    hostile = {
        "flipped": ({hub.FILE: good[:-1] + bytes([good[-1] ^ 1])}, "ArtifactError", "the SHA-256 of the file is"),
        "pickle": ({hub.FILE: b"\x80\x04\x95" + bytes(20)}, "ArtifactError", "this is a pickle, not an artifact"),
        "without": ({"README.md": b"nothing"}, "ConnectionError", "could not be downloaded"),
        "liar": ({hub.FILE: good}, "ArtifactError", "the server answers with the commit ../../evil"),
        "absent": (None, "ConnectionError", "could not be downloaded"),
    }
    commits = {name: hashlib.sha1(name.encode()).hexdigest() for name in hostile}
    server.commits |= {commits[name]: files for name, (files, *_) in hostile.items() if files is not None}
    server.answers_with[commits["liar"]] = "../../evil"
    done = python(server, home, "-c", PULLS, json.dumps(commits), str(tmp_path))
    assert done.returncode == 0, done.stderr
    refused = {name: rest for name, *rest in map(json.loads, done.stdout.splitlines())}
    assert refused.keys() == hostile.keys()
    for name, (_, kind, message) in hostile.items():
        assert refused[name][0] == kind
        assert refused[name][1].startswith(f"me/it at {commits[name]}") and message in refused[name][1]
    assert not list(tmp_path.iterdir()) and not list(home.parent.rglob("evil"))


@pytest.mark.parametrize("revision", ["main", "v1.0", "a" * 39, "A" * 40, "a" * 40 + "\n", "../" + "a" * 37, ""])
def test_what_can_move_is_refused_before_anything_is_asked(revision, server, tmp_path):
    before = len(server.asked)
    with pytest.raises(ValueError, match="not the 40 digits of a commit"):
        hub.pull("me/it", revision=revision, out=tmp_path / "it.safetensors")
    assert len(server.asked) == before


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "it.safetensors").write_bytes(b"mine")
    with pytest.raises(FileExistsError, match="would be overwritten"):
        hub.pull("me/it", revision=ABSENT, out=tmp_path / "it.safetensors")
    assert (tmp_path / "it.safetensors").read_bytes() == b"mine"


def test_offline_says_so(tmp_path):
    """The tests are offline: no request leaves this process."""
    with pytest.raises(ConnectionError, match=r"me/it at 0{40} could not be downloaded .*[Oo]ffline"):
        hub.pull("me/it", revision=ABSENT, out=tmp_path / "it.safetensors")
    with pytest.raises(ConnectionError, match="paper/quadratic could not be uploaded to me/it"):
        hub.push("paper/quadratic", "me/it")


def test_any_error_of_the_network_is_explained(tmp_path, monkeypatch):
    class StrangeError(Exception):
        pass

    def refuse(*args, **kwargs):
        raise StrangeError("connection refused")

    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", refuse)
    with pytest.raises(ConnectionError, match=r"me/it at 0{40} could not be downloaded \(StrangeError: connection ref"):
        hub.pull("me/it", revision=ABSENT, out=tmp_path / "it.safetensors")


def test_a_damaged_file_does_not_leave_this_machine(tmp_path):
    path = tmp_path / "it.safetensors"
    path.write_bytes(find("paper/quadratic").read_bytes()[:-1])
    with pytest.raises(ArtifactError, match="cut short"):
        hub.push(path, "me/it")


def test_without_the_library_it_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"pip install huggingface_hub"):
        hub.pull("me/it", revision=ABSENT, out=tmp_path / "it")


def test_importing_the_room_imports_no_network_library():
    code = "import sys, bygrad.deploy.hub, bygrad.deploy.card; assert 'huggingface_hub' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_card_holds_the_manifest_and_nothing_in_it_escapes():
    tensors = {"w": np.ones((2, 3), np.float32)}
    manifest = Manifest(
        name="mine/first",
        optimizer="LSTM",
        config={"hidden": 3},
        features=1,
        tensors=describe(tensors),
        training={"note": "```\n# not a heading\n---\nlicense: other"},
        licence="MIT\nevil: true",
    )
    lines = model_card(manifest, "me/first", "optimizer.safetensors").splitlines()
    assert lines[:3] == ["---", 'license: "mit\\nevil: true"', "library_name: bygrad"]
    assert "# not a heading" not in lines and "license: other" not in lines
    text = "\n".join(lines)
    assert "6 meta-parameters" in text and manifest.digest in text and '"hidden": 3' in text


def test_the_card_promises_no_rule_that_pytorch_does_not_have():
    shown = {
        name: model_card(
            Manifest(name="a/b", optimizer=name, config={}, features=1, tensors={}), "me/b", "b.safetensors"
        )
        for name in ("LSTM", "Controller", "STAR")
    }
    assert {name: "LearnedOptimizer(" in text for name, text in shown.items()} == {
        "LSTM": True,
        "Controller": True,
        "STAR": False,
    }
    assert "no rule for PyTorch" in shown["STAR"]
