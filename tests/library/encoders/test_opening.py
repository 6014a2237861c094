"""Names and folders to encoders."""

import json
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np
import pytest

from deepwell.errors import MissingModelError, UsageError
from deepwell.library.encoders import open_image, open_text
from deepwell.library.encoders.bert import BertEncoder


def test_a_folder_opens_by_its_model_type(bert_folder: Path) -> None:
    for given in (bert_folder, str(bert_folder)):
        encoder = open_text(given)
        assert isinstance(encoder, BertEncoder)
        assert encoder.encode(["a wing"]).shape == (1, 48)


def test_a_missing_model_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEEPWELL_MODELS", str(tmp_path))
    with pytest.raises(MissingModelError) as raised:
        open_text("all-minilm-l6-v2")
    assert "deepwell models pull all-minilm-l6-v2" in raised.value.hint
    with pytest.raises(MissingModelError, match="no folder"):
        open_text(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="no model named 'all-minilm'"):
        open_text("all-minilm")


def test_a_catalogue_name_brings_its_prompts(
    bert_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    monkeypatch.setenv("DEEPWELL_MODELS", str(tmp_path))
    folder = tmp_path / "multilingual-e5-small"
    shutil.copytree(bert_folder, folder)
    encoder = open_text(folder)
    assert isinstance(encoder, BertEncoder)
    assert encoder.name == "multilingual-e5-small"
    assert (encoder.recipe.query_prompt, encoder.recipe.passage_prompt) == ("query: ", "passage: ")


def test_folders_that_are_no_encoder(tmp_path: Path, bert_folder: Path) -> None:
    with pytest.raises(UsageError, match="names no model_type"):
        open_text(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({}))
    with pytest.raises(UsageError, match="names no model_type"):
        open_text(tmp_path)
    with pytest.raises(UsageError, match="encodes no pictures"):
        open_image(bert_folder)


def test_families_are_entry_points() -> None:
    names = {door.name for door in entry_points(group="deepwell.encoders")}
    assert {"bert", "modernbert", "gemma3-text", "embeddinggemma2", "transformers"} <= names


def test_a_query_needs_neither_torch_nor_transformers(bert_folder: Path) -> None:
    program = (
        "import sys; from deepwell.library.encoders import open_text\n"
        "assert 'numpy' not in sys.modules, 'importing the door must cost nothing'\n"
        f"v = open_text({str(bert_folder)!r}).encode(['a wing'], query=True)\n"
        "assert v.shape == (1, 48)\n"
        "assert not {'torch', 'transformers', 'lancedb', 'scipy'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


@pytest.mark.models
def test_minilm_knows_what_is_alike() -> None:
    encoder = open_text("all-minilm-l6-v2")
    texts = ["A man is eating food.", "A man is eating a piece of bread.", "The girl is carrying a baby."]
    vectors = encoder.encode(texts)
    alike = vectors @ vectors.T
    assert alike[0, 1] > 0.7 > 0.2 > alike[0, 2]
    np.testing.assert_allclose(np.diag(alike), 1, atol=1e-5)
