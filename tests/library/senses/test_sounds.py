"""Windows that hear the same become one stretch; silence is no sound."""

from pathlib import Path

import numpy as np
import pytest

from deepwell.errors import ModelSourceError
from deepwell.library.senses import sounds
from deepwell.library.senses.recordings import RATE
from deepwell.library.senses.sounds import SoundListener, stretches

NAMES = ("Silence", "Dog", "Rain")


def windows(*rows: tuple[float, float, float]) -> np.ndarray:
    return np.array(rows, dtype=np.float32)


def told(scores: np.ndarray, seconds: float | None = None) -> list[tuple[float, float, list[str]]]:
    tags = stretches(scores, NAMES, 1.0, seconds if seconds is not None else float(len(scores)))
    return [(tag.start, tag.end, [label.name for label in tag.labels]) for tag in tags]


def test_neighbours_that_hear_the_same_are_joined() -> None:
    dog, rain, none = (0, 0.9, 0.05), (0, 0.05, 0.8), (0.9, 0.0, 0.0)
    assert told(windows(dog, dog, rain, rain)) == [(0, 2, ["Dog"]), (2, 4, ["Rain"])]
    assert told(windows(dog, none, dog, none, none, rain)) == [(0, 3, ["Dog"]), (5, 6, ["Rain"])]
    assert told(windows(none, none)) == []


def test_what_fades_ends_though_it_is_still_faintly_heard() -> None:
    scores = windows((0, 0.9, 0.0), (0, 0.3, 0.8), (0, 0.12, 0.8))
    assert told(scores) == [(0, 2, ["Dog", "Rain"]), (2, 3, ["Rain", "Dog"])]


def test_what_is_heard_beside_it_is_told_too_best_first() -> None:
    (tag,) = stretches(windows((0, 0.4, 0.9), (0, 0.4, 0.8)), NAMES, 1.0, 1.5)
    assert [(label.name, label.score) for label in tag.labels] == [("Rain", 0.85), ("Dog", 0.4)]
    assert (tag.start, tag.end) == (0, 1.5)


class FakeInterpreter:
    """Hears a dog wherever it is loud; counts the windows it was shown."""

    def __init__(self) -> None:
        self.shown = 0
        self.samples = np.zeros(0)

    def get_input_details(self) -> list[dict[str, object]]:
        return [{"index": 0, "shape": np.array([1, 15600])}]

    def get_output_details(self) -> list[dict[str, object]]:
        return [{"index": 1}]

    def set_tensor(self, index: int, value: np.ndarray) -> None:
        assert value.shape == (1, 15600)
        assert value.dtype == np.float32
        self.samples = value

    def invoke(self) -> None:
        self.shown += 1

    def get_tensor(self, index: int) -> np.ndarray:
        return np.array([[0.0, float(np.abs(self.samples).max() > 0.3), 0.0]], dtype=np.float32)


def test_a_recording_is_heard_window_by_window(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    quiet, loud = np.zeros(4 * RATE, dtype=np.float32), np.full(3 * RATE, 0.5, dtype=np.float32)
    monkeypatch.setattr(sounds, "pieces", lambda path: iter([quiet, loud, quiet]))
    listener = SoundListener(tmp_path)
    interpreter = FakeInterpreter()
    listener.__dict__.update(interpreter=interpreter, names=NAMES)
    (tag,) = listener.tags(tmp_path)
    assert tag.labels[0].name == "Dog"
    assert tag.start == pytest.approx(4, abs=1)
    assert tag.end == pytest.approx(7, abs=1)
    assert interpreter.shown < 6  # silence is not worth a look


def test_a_folder_without_the_model(tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_litert")
    with pytest.raises(ModelSourceError, match="models pull yamnet"):
        _ = SoundListener(tmp_path).interpreter
    with pytest.raises(ModelSourceError, match="models pull yamnet"):
        _ = SoundListener(tmp_path).names
