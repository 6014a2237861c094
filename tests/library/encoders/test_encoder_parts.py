"""Recipe, fingerprint, packing, weights and the error function, each alone."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepwell.errors import ModelSourceError
from deepwell.library.encoders.bert.layers_numpy import gelu_
from deepwell.library.encoders.fingerprint import fingerprint, sampled_hash
from deepwell.library.encoders.packing import pack
from deepwell.library.encoders.recipe import DenseStep, Recipe, read_recipe
from deepwell.library.encoders.vectors import unit


@given(st.lists(st.integers(1, 30), max_size=60), st.integers(1, 50))
def test_packing_keeps_every_token_once_and_in_place(lengths: list[int], budget: int) -> None:
    sequences = [np.arange(length, dtype=np.int32) + 100 * n for n, length in enumerate(lengths)]
    seen: list[int] = []
    for batch in pack(sequences, budget):
        assert len(batch.ids) <= budget or len(batch.rows) == 1
        assert sum(count * length for _, count, length in batch.runs) == len(batch.ids)
        ends = [*batch.starts[1:], len(batch.ids)]
        for row, start, end in zip(batch.rows, batch.starts, ends, strict=True):
            np.testing.assert_array_equal(batch.ids[start:end], sequences[row])
            np.testing.assert_array_equal(batch.positions[start:end], np.arange(end - start))
            run = [(first, count, length) for first, count, length in batch.runs if first <= start]
            first, count, length = run[-1]
            assert length == end - start and (start - first) % length == 0 and start < first + count * length
        seen.extend(batch.rows.tolist())
    assert sorted(seen) == list(range(len(lengths)))


def test_gelu_is_exact_enough() -> None:
    x = np.concatenate([np.linspace(-9, 9, 20001), [-1e4, -50.0, 50.0, 1e4]]).astype(np.float32)
    gelu = [v * 0.5 * math.erfc(-v / math.sqrt(2)) for v in x.astype(float)]
    gelu_(x)
    np.testing.assert_allclose(x[:-2], gelu[:-2], atol=8e-7)
    np.testing.assert_allclose(x[-2:], gelu[-2:])


def test_unit_leaves_zeros() -> None:
    vectors = unit(np.array([[3, 4], [0, 0]], np.float32))
    np.testing.assert_allclose(vectors, [[0.6, 0.8], [0, 0]])


def test_fingerprint_follows_contents_and_recipe_and_nothing_else(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    blob = np.random.default_rng(1).bytes(300_000)
    for folder in (first, second):
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(blob)
        (folder / "tokenizer.json").write_text("{}")
    names = ["model.safetensors", "tokenizer.json"]
    base = fingerprint(first, names, recipe=Recipe(), dim=8)
    assert len(base) == 16
    assert fingerprint(second, reversed(names), recipe=Recipe(), dim=8) == base
    assert fingerprint(first, [*names, "absent.json"], recipe=Recipe(), dim=8) == base
    changed = {
        fingerprint(first, names, recipe=recipe, dim=dim)
        for recipe, dim in [
            (Recipe(), 4), (Recipe(pooling="cls"), 8), (Recipe(max_tokens=128), 8), (Recipe(query_prompt="q: "), 8),
            (Recipe(passage_prompt="q: "), 8), (Recipe(normalize=False), 8),
            (Recipe(dense=(DenseStep("2", "tanh"),)), 8),
        ]
    }  # fmt: skip
    assert len(changed) == 7 and base not in changed
    (second / "tokenizer.json").write_text("{ }")
    assert fingerprint(second, names, recipe=Recipe(), dim=8) != base


@given(st.integers(1, 400_000), st.integers(0, 2**32))
def test_sampled_hash_sees_size_and_any_retraining(size: int, seed: int) -> None:
    import tempfile

    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "weights")
        path.write_bytes(rng.bytes(size))
        before = sampled_hash(path)
        assert sampled_hash(path) == before
        path.write_bytes(rng.bytes(size + 1))
        assert sampled_hash(path) != before
        path.write_bytes(rng.bytes(size + 1))
        assert sampled_hash(path) != before


def _write(folder: Path, files: dict[str, object]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(data))
    return folder


def _steps(*kinds: str) -> list[dict[str, str]]:
    return [{"path": f"{n}_{kind}", "type": f"sentence_transformers.models.{kind}"} for n, kind in enumerate(kinds)]


def test_recipe_of_sentence_transformers_files(tmp_path: Path) -> None:
    folder = _write(
        tmp_path,
        {
            "config.json": {"max_position_embeddings": 2048},
            "modules.json": _steps("Transformer", "Pooling", "Dense", "Dense", "Normalize"),
            "1_Pooling/config.json": {"pooling_mode_mean_tokens": True, "include_prompt": False},
            "2_Dense/config.json": {"activation_function": "torch.nn.modules.activation.Tanh"},
            "3_Dense/config.json": {"activation_function": "torch.nn.modules.linear.Identity"},
            "sentence_bert_config.json": {"max_seq_length": 1024},
            "config_sentence_transformers.json": {"prompts": {"query": "q: ", "document": "title: none | text: "}},
        },
    )
    assert read_recipe(folder, {"pooling": "cls", "query_prefix": "not this"}) == Recipe(
        pooling="mean",
        pool_prompt=False,
        dense=(DenseStep("2_Dense", "tanh"), DenseStep("3_Dense", "identity")),
        normalize=True,
        max_tokens=1024,
        query_prompt="q: ",
        passage_prompt="title: none | text: ",
    )


def test_the_catalogue_fills_in_what_no_file_says(tmp_path: Path) -> None:
    folder = _write(tmp_path, {"config.json": {"max_position_embeddings": 512}})
    settings = {"pooling": "cls", "query_prefix": "query: ", "passage_prefix": "passage: "}
    assert read_recipe(folder, settings) == Recipe(
        pooling="cls", query_prompt="query: ", passage_prompt="passage: ", max_tokens=512
    )
    assert read_recipe(folder).pooling == "mean"


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        (
            {"sentence_bert_config.json": {"max_seq_length": 256}, "tokenizer_config.json": {"model_max_length": 512}},
            256,
        ),
        ({"tokenizer_config.json": {"model_max_length": 128}}, 128),
        ({"tokenizer_config.json": {"model_max_length": 1000000000000000019884624838656}}, 512),
        ({"sentence_bert_config.json": {"max_seq_length": 4096}}, 512),
        ({}, 512),
    ],
)  # fmt: skip
def test_longest_input(tmp_path: Path, limits: dict[str, object], expected: int) -> None:
    folder = _write(tmp_path, {"config.json": {"max_position_embeddings": 512}, **limits})
    assert read_recipe(folder).max_tokens == expected


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"modules.json": _steps("Transformer", "LayerNorm")}, "a step 'LayerNorm'"),
        ({"modules.json": _steps("Transformer", "Pooling"), "1_Pooling/config.json": {}}, "asks for 0 known ways"),
        (
            {"modules.json": _steps("Dense"), "0_Dense/config.json": {"activation_function": "x.Sin"}},
            "activation 'Sin'",
        ),
        (
            {"modules.json": _steps("Pooling"), "0_Pooling/config.json": {"pooling_mode": "weightedmean"}},
            "unknown pooling",
        ),
    ],
)  # fmt: skip
def test_what_is_not_known_is_refused(tmp_path: Path, files: dict[str, object], message: str) -> None:
    with pytest.raises(ModelSourceError, match=message):
        read_recipe(_write(tmp_path, files))
