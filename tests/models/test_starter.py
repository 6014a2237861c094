"""The starter models as they were pulled on this machine: ``deepwell models pull starter`` first."""

import os
from pathlib import Path

import pytest

from deepwell import models

WHERE = os.environ.get("DEEPWELL_MODELS")  # before any test moves it


@pytest.fixture(autouse=True)
def real_folder(shelf_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if WHERE is None:
        monkeypatch.delenv("DEEPWELL_MODELS")
    else:
        monkeypatch.setenv("DEEPWELL_MODELS", WHERE)


@pytest.mark.models
@pytest.mark.parametrize("name", ["all-minilm-l6-v2", "whisper-tiny", "efficientnet-lite0", "smollm2-135m-instruct"])
def test_every_byte_is_as_it_was_pulled(name: str) -> None:
    result = models.verify(name)
    assert result.problems == ()
    info = models.find(name)
    assert result.size == pytest.approx(info.size, rel=0.01)
    assert all((result.folder / file).is_file() for file in info.files)


@pytest.mark.models
def test_the_sentence_encoder_is_the_one_that_the_hub_has() -> None:
    record = models.manifest("all-minilm-l6-v2")
    if record is None:
        pytest.skip("placed by hand: there is no manifest")
    published = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
    assert record.files["model.safetensors"].sha256 == published


@pytest.mark.models
def test_the_classifier_has_a_name_for_each_class_in_the_known_order() -> None:
    place = models.folder("efficientnet-lite0")
    labels = (place / "labels.txt").read_text(encoding="utf-8").splitlines()
    synonyms = (place / "synonyms.txt").read_text(encoding="utf-8").splitlines()
    assert len(labels) == len(synonyms) == 1000
    assert [labels[index] for index in (0, 281, 999)] == ["tench", "tabby", "toilet tissue"]
    assert all(line.split(",")[0].strip() == label for label, line in zip(labels, synonyms, strict=True))
