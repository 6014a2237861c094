"""A picture's vector lies between the meanings of its labels."""

from pathlib import Path

import numpy as np
import pytest

from deepwell.library.encoders.conse import Conse
from deepwell.library.protocols import TextEncoder
from deepwell.library.records import Label
from deepwell.testing import HashEncoder


def test_words_are_nearest_to_what_they_name() -> None:
    encoder = HashEncoder()
    conse = Conse(encoder)
    rows = conse.encode_labels([(Label("dog", 0.7), Label("ball", 0.2)), (Label("ship", 0.9), Label("sea", 0.05))])
    assert rows.shape == (2, encoder.dim)
    assert rows.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    dog, ball, ship = encoder.encode(["dog", "ball", "ship"])
    assert rows[0] @ dog > rows[0] @ ball > rows[0] @ ship
    assert rows[1] @ ship > rows[1] @ dog


def test_one_label_is_its_own_meaning_whatever_its_score() -> None:
    encoder = HashEncoder()
    (row,) = Conse(encoder).encode_labels([(Label("dog", 0.01),)])
    np.testing.assert_allclose(row, encoder.encode(["dog"])[0], atol=1e-6)


def test_no_labels_have_no_vector() -> None:
    rows = Conse(HashEncoder()).encode_labels([(), (Label("dog", 1.0),)])
    assert np.isnan(rows[0]).all()
    assert np.isfinite(rows[1]).all()
    assert Conse(HashEncoder()).encode_labels([]).shape == (0, 64)


def test_each_name_is_encoded_once() -> None:
    encoder = HashEncoder()
    conse = Conse(encoder)
    for _ in range(3):
        conse.encode_labels([(Label("dog", 0.5), Label("ball", 0.5)), (Label("dog", 0.9),)])
    assert encoder.encoded == 2


def test_phrases_stand_for_names(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("kuvasz\ncrane\ncrane\n")
    (tmp_path / "definitions.txt").write_text("a large white dog\na bird\na machine\n")
    encoder = HashEncoder()
    conse = Conse.open(encoder, tmp_path)
    (row,) = conse.encode_labels([(Label("kuvasz", 1.0),)])
    (dog,) = encoder.encode(["a large white dog"])
    assert row @ dog > 0.8
    assert conse.fingerprint != Conse(encoder).fingerprint


def test_it_goes_on_without_a_classifier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEEPWELL_MODELS", str(tmp_path))
    encoder = HashEncoder()
    assert Conse.open(encoder).fingerprint == Conse(encoder).fingerprint


def test_the_fingerprint_follows_the_encoder() -> None:
    encoder: TextEncoder = HashEncoder(seed=1)
    assert Conse(encoder).fingerprint != Conse(HashEncoder(seed=2)).fingerprint
    assert Conse(encoder).fingerprint == Conse(HashEncoder(seed=1)).fingerprint
