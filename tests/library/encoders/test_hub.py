"""Families through transformers: tiny random checkpoints against plain computations one text at a time."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deepwell.errors import MissingExtraError, ModelSourceError, UsageError
from deepwell.library.encoders import open_text
from deepwell.library.encoders.hub import HubEncoder, load, padded_batches
from deepwell.library.protocols import TextEncoder

TEXTS = ["a wing", "the boundary layer of a plate in supersonic flow and heat", "", "drag", "the " * 100]


def modernbert(transformers: Any) -> Any:
    config = transformers.ModernBertConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        max_position_embeddings=64, local_attention=8, global_attn_every_n_layers=3, pad_token_id=0,
        bos_token_id=2, eos_token_id=3, cls_token_id=2, sep_token_id=3,
    )  # fmt: skip
    return transformers.ModernBertModel(config)


def gemma3(transformers: Any) -> Any:
    config = transformers.Gemma3TextConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, max_position_embeddings=64, sliding_window=8,
        layer_types=["sliding_attention", "full_attention"], use_bidirectional_attention=True,
    )  # fmt: skip
    return transformers.Gemma3TextModel(config)


def gemma2(transformers: Any) -> Any:
    """EmbeddingGemma 2 whole: with a vision tower, whose weights a text encoder must leave on disk."""
    text = {
        "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 16, "global_head_dim": 16, "num_global_key_value_heads": 1,
        "max_position_embeddings": 64, "sliding_window": 4, "hidden_size_per_layer_input": 8, "embedding_dim": 24,
        "sliding_window_pattern": 2,
    }  # fmt: skip
    vision = {
        "model_type": "gemma4_vision", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8,
    }  # fmt: skip
    config = transformers.EmbeddingGemma2Config(text_config=text, vision_config=vision, audio_config=None)
    return transformers.EmbeddingGemma2Model(config)


def reference(folder: Path, texts: list[str], pooling: str, max_tokens: int) -> np.ndarray:
    """One text at a time, so nothing is ever padded; dense layers written out."""
    import torch
    from safetensors.torch import load_file
    from tokenizers import Tokenizer
    from transformers import AutoModel

    network = AutoModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_tokens)
    rows = []
    for text in texts:
        ids = torch.tensor([tokenizer.encode(text).ids])
        with torch.no_grad():
            states = network(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0]
        vector = states.mean(0) if pooling == "mean" else states[0]
        dense = folder / "2_Dense" / "model.safetensors"
        if dense.is_file():
            layer = load_file(dense)
            vector = torch.tanh(layer["linear.weight"] @ vector + layer["linear.bias"])
        rows.append((vector / vector.norm()).numpy())
    return np.stack(rows)


MAX_TOKENS = 40

FAMILIES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "modernbert": (modernbert, "cls"),
    "gemma3": (gemma3, "mean"),
    "gemma2": (gemma2, "mean"),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, dress: Callable[..., None]) -> dict[str, Path]:
    """A tiny checkpoint of each family, as a hub publishes it; EmbeddingGemma 1 (gemma3) with its dense layer."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    made = {}
    for family, (make, pooling) in FAMILIES.items():
        torch.manual_seed(3)
        network = make(transformers)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.05)
        folder = made[family] = tmp_path_factory.mktemp("hub") / f"tiny-{family}"
        network.save_pretrained(folder)
        dress(folder, pooling, max_tokens=MAX_TOKENS, dense=family == "gemma3")
        if family == "gemma3":
            from safetensors.torch import save_file

            (folder / "2_Dense").mkdir()
            config = {"in_features": 32, "out_features": 20, "activation_function": "torch.nn.modules.activation.Tanh"}
            (folder / "2_Dense" / "config.json").write_text(json.dumps(config))
            layer = {"linear.weight": torch.randn(20, 32), "linear.bias": torch.randn(20)}
            save_file(layer, folder / "2_Dense" / "model.safetensors")
    return made


@pytest.fixture(params=list(FAMILIES))
def checkpoint(request: pytest.FixtureRequest, folders: dict[str, Path]) -> tuple[Path, str]:
    """Folder and pooling of one family after another."""
    return folders[request.param], FAMILIES[request.param][1]


def test_vectors_are_those_of_a_plain_computation(checkpoint: tuple[Path, str]) -> None:
    folder, pooling = checkpoint
    encoder = load(folder)
    assert isinstance(encoder, TextEncoder)
    vectors = encoder.encode(TEXTS)
    expected = reference(folder, TEXTS, pooling, MAX_TOKENS)
    assert vectors.shape == (len(TEXTS), encoder.dim) == expected.shape
    np.testing.assert_allclose(vectors, expected, atol=5e-6)


def test_the_folders_model_type_finds_the_family(checkpoint: tuple[Path, str]) -> None:
    encoder = open_text(checkpoint[0], dim=8)
    assert isinstance(encoder, HubEncoder) and encoder.dim == 8
    whole = load(checkpoint[0])
    expected = whole.encode(TEXTS)[:, :8]
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(encoder.encode(TEXTS), expected, atol=1e-6)
    assert encoder.fingerprint != whole.fingerprint
    with pytest.raises(UsageError, match="numbers, 999 were asked for"):
        open_text(checkpoint[0], dim=999)


def test_small_batches_change_nothing(checkpoint: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = load(checkpoint[0])
    expected = encoder.encode(TEXTS)
    monkeypatch.setattr("deepwell.library.encoders.hub.WINDOW", 2)
    monkeypatch.setattr("deepwell.library.encoders.hub.PADDED_TOKENS", 30)
    np.testing.assert_allclose(encoder.encode(TEXTS), expected, atol=5e-6)


def test_only_the_text_tower_of_embedding_gemma_2_is_loaded(folders: dict[str, Path]) -> None:
    encoder = load(folders["gemma2"])
    encoder.encode(["a wing"])
    assert not [name for name, _ in encoder._network.named_parameters() if "vision" in name]


def test_a_prompt_can_be_left_out_of_pooling(folders: dict[str, Path], tmp_path: Path) -> None:
    import torch
    from tokenizers import Tokenizer

    folder = tmp_path / "prompted"
    shutil.copytree(folders["gemma2"], folder)
    config = json.loads((folder / "1_Pooling" / "config.json").read_text())
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({**config, "include_prompt": False}))
    prompts = {"prompts": {"query": "the heat of "}}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    encoder = load(folder)
    ids = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids.no_padding()
    with torch.no_grad():
        encoder.encode(["a"])
        states = encoder._network(input_ids=torch.tensor([ids.encode("the heat of drag").ids])).last_hidden_state[0]
    expected = states[4:].mean(0)  # [CLS] the heat of | drag [SEP]
    np.testing.assert_allclose(encoder.encode(["drag"], query=True)[0], expected / expected.norm(), atol=5e-6)


def test_padded_batches_hold_their_budget() -> None:
    lengths = [3, 50, 7, 7, 1, 20]
    batches = [batch.tolist() for batch in padded_batches(lengths, 40)]
    assert batches == [[1], [5, 2], [3, 0, 4]]
    assert all(len(batch) * max(lengths[row] for row in batch) <= 40 for batch in batches[1:])


def test_missing_packages_and_weights_are_named(bert_folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    folder = tmp_path / "unknown"
    shutil.copytree(bert_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "no_such_network"}))
    encoder = open_text(folder)
    assert isinstance(encoder, HubEncoder)
    with pytest.raises(ModelSourceError, match="transformers cannot load"):
        encoder.encode(["a"])
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(MissingExtraError, match="transformers") as raised:
        open_text(folder).encode(["a"])
    assert "deepwell[hub]" in raised.value.hint
