"""Senses say what they lack and how to get it, and load nothing before it is needed."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from deepwell.errors import MissingExtraError, MissingModelError
from deepwell.library.protocols import Senses
from deepwell.library.senses import LocalSenses


def test_a_missing_model_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEEPWELL_MODELS", str(tmp_path))
    senses: Senses = LocalSenses(threads=1)
    with pytest.raises(MissingModelError, match="deepwell models pull efficientnet-lite0"):
        senses.labels(Image.new("RGB", (8, 8)))
    with pytest.raises(MissingModelError, match="deepwell models pull whisper-tiny"):
        senses.transcribe(tmp_path / "a.wav")
    with pytest.raises(MissingModelError, match="deepwell models pull yamnet"):
        senses.sounds(tmp_path / "a.wav")


def test_a_missing_package_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, package=None: None)
    senses = LocalSenses(model_folder=lambda name: tmp_path)
    with pytest.raises(MissingExtraError, match=r"pip install 'deepwell\[images\]'"):
        senses.ocr(Image.new("RGB", (80, 80)))
    with pytest.raises(MissingExtraError, match=r"pip install 'deepwell\[audio\]'"):
        senses.transcribe(tmp_path)
    with pytest.raises(MissingExtraError, match=r"pip install 'deepwell\[sounds\]'"):
        senses.sounds(tmp_path)


def test_nothing_heavy_is_imported_before_it_is_needed() -> None:
    code = (
        "import sys; from deepwell.library.senses import LocalSenses; LocalSenses(threads=1);"
        "import deepwell.library.readers.image, deepwell.library.readers.audio, deepwell.library.readers.svg;"
        "print([m for m in ('torch', 'cv2', 'onnxruntime', 'rapidocr', 'av', 'PIL') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
