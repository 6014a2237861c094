import hashlib
import json
from pathlib import Path

import pytest

from deepwell import models
from deepwell.errors import ModelSourceError
from deepwell.models.catalogue import HubPart
from deepwell.models.sources.hub import choose
from deepwell.models.sources.patterns import matches

COMMIT = "0123456789abcdef0123456789abcdef01234567"
WEIGHTS = b"weights" * 10_000
CONFIG = b'{"model_type": "bert"}'
FILES = {"model.safetensors": WEIGHTS, "config.json": CONFIG, "1_Pooling/config.json": b"{}", "onnx/model.onnx": b"o"}


def git_sha1(data: bytes) -> str:
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()


@pytest.fixture
def hub(server, add_model, monkeypatch: pytest.MonkeyPatch):
    """A hub with one repository, and a model 'mine' of the catalogue that is in it."""
    monkeypatch.setenv("HF_ENDPOINT", server.url + "/")
    siblings: list[dict[str, object]] = []
    for name, data in FILES.items():
        entry: dict[str, object] = {"rfilename": name, "size": len(data), "blobId": git_sha1(data)}
        if name.endswith((".safetensors", ".onnx")):
            entry["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
        siblings.append(entry)
        server.files[f"/our/encoder/resolve/{COMMIT}/{name}"] = data
    server.files["/api/models/our/encoder/revision/main"] = json.dumps({"sha": COMMIT, "siblings": siblings}).encode()
    server.siblings = siblings

    def announce() -> None:
        body = json.dumps({"sha": COMMIT, "siblings": siblings}).encode()
        server.files["/api/models/our/encoder/revision/main"] = body

    server.announce = announce
    source = {"kind": "hub", "repo": "our/encoder", "revision": "main", "optional": ["1_Pooling/*", "absent.json"]}
    add_model("mine", source, files=("config.json", "model.safetensors"))
    add_model(
        "pinned", {**source, "sha256": {"model.safetensors": "0" * 64}}, files=("config.json", "model.safetensors")
    )
    return server


def test_needed_and_optional_files_are_fetched_and_the_rest_is_not(hub) -> None:
    models.pull("mine")
    place = models.folder("mine")
    assert {path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file()} == {
        "config.json",
        "model.safetensors",
        "1_Pooling/config.json",
        "deepwell-model.json",
    }
    assert (place / "model.safetensors").read_bytes() == WEIGHTS
    record = models.manifest("mine")
    assert record is not None
    assert record.details["parts"][0]["commit"] == COMMIT
    assert models.verify("mine").ok


def test_a_pull_that_broke_off_keeps_what_it_has(hub) -> None:
    del hub.files[f"/our/encoder/resolve/{COMMIT}/config.json"]
    with pytest.raises(ModelSourceError, match=r"404.*config\.json"):
        models.pull("mine")
    assert not models.is_present("mine")
    hub.files[f"/our/encoder/resolve/{COMMIT}/config.json"] = CONFIG
    hub.asked.clear()
    models.pull("mine")
    assert f"/our/encoder/resolve/{COMMIT}/1_Pooling/config.json" not in hub.paths()


def test_a_file_that_is_not_what_the_hub_announced_is_refused(hub) -> None:
    hub.files[f"/our/encoder/resolve/{COMMIT}/config.json"] = CONFIG.replace(b"bert", b"evil")
    with pytest.raises(ModelSourceError, match=r"config\.json is not what was promised: its git hash"):
        models.pull("mine")
    assert not models.is_present("mine")


def test_a_pinned_hash_is_stronger_than_what_the_hub_says(hub) -> None:
    with pytest.raises(ModelSourceError, match="is not the file that the catalogue knows"):
        models.pull("pinned")
    assert not any("/resolve/" in path for path in hub.paths())


def test_a_needed_file_that_is_not_there_is_named(hub) -> None:
    del hub.siblings[1]
    hub.announce()
    with pytest.raises(ModelSourceError, match=r"our/encoder at main holds no config\.json"):
        models.pull("mine")


def test_the_token_goes_to_the_hub_and_not_to_whom_it_redirects(hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    # The same machine by another name: another origin, as a hub's file store is.
    elsewhere = hub.url.replace("127.0.0.1", "localhost")
    hub.files["/store"] = WEIGHTS
    hub.redirects[f"/our/encoder/resolve/{COMMIT}/model.safetensors"] = f"{elsewhere}/store"
    models.pull("mine")
    sent = {path: headers.get("authorization") for path, headers in hub.asked}
    assert sent["/store"] is None
    assert {value for path, value in sent.items() if path != "/store"} == {"Bearer hf_secret"}


def test_the_token_that_a_login_left_is_used(hub, tmp_path: Path) -> None:
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "token").write_text("hf_saved\n")
    models.pull("mine")
    assert {headers.get("authorization") for _, headers in hub.asked} == {"Bearer hf_saved"}


@pytest.mark.parametrize("status", [401, 404])
def test_a_repository_that_is_not_shown_is_explained(status: int, hub) -> None:
    hub.status = [status]
    with pytest.raises(ModelSourceError, match=f"answered {status} for our/encoder at main") as caught:
        models.pull("mine")
    assert "HF_TOKEN" in caught.value.hint


@pytest.mark.parametrize("body", [b"<html>", b"[]", b"{}", b'{"sha": "../x", "siblings": []}'])
def test_something_that_is_no_hub_is_explained(body: bytes, hub) -> None:
    hub.files["/api/models/our/encoder/revision/main"] = body
    with pytest.raises(ModelSourceError) as caught:
        models.pull("mine")
    assert caught.value.hint == "check HF_ENDPOINT"


def test_a_listing_cannot_write_outside(hub) -> None:
    hub.siblings.append({"rfilename": "1_Pooling/../../../evil", "size": 1, "blobId": "0" * 40})
    hub.announce()
    models.pull("mine")
    assert not any("evil" in path for path in hub.paths())


def test_offline_means_no_request(hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelSourceError, match="HF_HUB_OFFLINE is set"):
        models.pull("mine")
    assert hub.asked == []


def cache(tmp_path: Path, damaged: bool = False) -> None:
    repo = tmp_path / "hf" / "hub" / "models--our--encoder"
    snapshot = repo / "snapshots" / COMMIT
    (snapshot / "1_Pooling").mkdir(parents=True)
    (repo / "blobs").mkdir()
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(COMMIT)
    for name, data in FILES.items():
        blob = hashlib.sha256(data).hexdigest() if name.endswith("safetensors") else git_sha1(data)
        (repo / "blobs" / blob).write_bytes(b"?" * len(data) if damaged else data)
        (snapshot / name).parent.mkdir(exist_ok=True)
        (snapshot / name).symlink_to(repo / "blobs" / blob)


def test_what_the_hubs_own_tools_downloaded_is_copied(hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    models.pull("mine")
    assert hub.asked == []
    assert not (models.folder("mine") / "model.safetensors").is_symlink()
    assert (models.folder("mine") / "model.safetensors").read_bytes() == WEIGHTS


def test_a_damaged_cache_is_not_believed(hub, tmp_path: Path) -> None:
    cache(tmp_path, damaged=True)
    models.pull("mine")
    assert (models.folder("mine") / "model.safetensors").read_bytes() == WEIGHTS


def test_choose_takes_needed_before_optional() -> None:
    part = HubPart("a/b", "main", ("model*.safetensors",), ("*.json",))
    names = ["model-1.safetensors", "model-2.safetensors", "config.json", "sub/config.json", "x.bin"]
    assert choose(part, names) == ["config.json", "model-1.safetensors", "model-2.safetensors"]


@pytest.mark.parametrize(
    ("path", "pattern", "expected"),
    [("a.json", "*.json", True), ("x/a.json", "*.json", False), ("x/a.json", "x/*", True), ("x/y/a", "x/*", False)],
)
def test_a_star_does_not_cross_a_slash(path: str, pattern: str, expected: bool) -> None:
    assert matches(path, pattern) is expected
