"""Our BERT in both executors against transformers' BertModel, on a tiny random checkpoint."""

import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

from deepwell.errors import MissingModelError, ModelSourceError
from deepwell.library.encoders.bert import encoder as encoder_module
from deepwell.library.encoders.bert.encoder import BertEncoder
from deepwell.library.encoders.recipe import Recipe
from deepwell.library.protocols import CountsTokens, TextEncoder

TEXTS = [
    "a wing",
    "the boundary layer of a plate in supersonic flow and heat",
    "shock waves",
    "",
    "drag",
    "lift and drag of the heated wing",
    "the " * 100,
    "a wing",
]

EXECUTORS = ["numpy", "torch"]


@pytest.fixture(autouse=True)
def _exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """float32 also where the processor multiplies bfloat16: what is compared here is the network, not its rounding."""
    import torch

    monkeypatch.setattr("deepwell.library.encoders.bert.layers_torch.precision", lambda: torch.float32)


def reference(folder: Path, texts: list[str], pooling: str, max_tokens: int) -> np.ndarray:
    """One text at a time through transformers: no packing, no batches, pooling written out."""
    import torch
    from tokenizers import Tokenizer
    from transformers import BertModel

    network = BertModel.from_pretrained(folder, attn_implementation="eager").eval()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_tokens)
    rows = []
    for text in texts:
        with torch.no_grad():
            states = network(input_ids=torch.tensor([tokenizer.encode(text).ids])).last_hidden_state[0]
        vector = {
            "mean": states.mean(0), "cls": states[0], "last": states[-1], "max": states.max(0).values
        }[pooling]  # fmt: skip
        rows.append((vector / vector.norm()).numpy())
    return np.stack(rows)


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("pooling", ["mean", "cls", "last", "max"])
def test_vectors_are_those_of_transformers(bert_folder: Path, executor: str, pooling: str) -> None:
    encoder = BertEncoder(bert_folder, executor=executor, recipe=Recipe(pooling=pooling, max_tokens=32))
    assert isinstance(encoder, TextEncoder)
    vectors = encoder.encode(TEXTS)
    assert vectors.dtype == np.float32 and vectors.shape == (len(TEXTS), 48)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(vectors, reference(bert_folder, TEXTS, pooling, 32), atol=3e-6)


@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_vector_does_not_depend_on_its_company(
    bert_folder: Path, executor: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = BertEncoder(bert_folder, executor=executor)
    alone = np.concatenate([encoder.encode([text]) for text in TEXTS])
    monkeypatch.setattr(encoder_module, "TOKEN_BUDGET", 9)  # several batches, one sequence longer than the budget
    monkeypatch.setattr(encoder_module, "WINDOW", 3)  # several windows, the next tokenised ahead
    np.testing.assert_allclose(encoder.encode(TEXTS), alone, atol=2e-6)


def test_the_recipe_is_read_from_the_folder(bert_folder: Path) -> None:
    encoder = BertEncoder(bert_folder)
    assert encoder.recipe == Recipe(pooling="mean", max_tokens=32)
    assert encoder.name == "tiny-bert" and encoder.dim == 48
    # 100 words are cut at 32 tokens, not at the tokenizer's stored 128, which the position table could not hold.
    np.testing.assert_array_equal(encoder.encode(["the " * 100]), encoder.encode(["the " * 30]))
    assert not np.allclose(encoder.encode(["the " * 100]), encoder.encode(["the " * 29]), atol=1e-4)


@pytest.mark.parametrize("executor", EXECUTORS)
def test_prompts_go_before_queries_and_passages(bert_folder: Path, executor: str) -> None:
    recipe = Recipe(max_tokens=32, query_prompt="the heat: ", passage_prompt="a wing: ")
    encoder = BertEncoder(bert_folder, executor=executor, recipe=recipe)
    plain = BertEncoder(bert_folder, executor=executor)
    np.testing.assert_allclose(encoder.encode(["drag"], query=True), plain.encode(["the heat: drag"]), atol=1e-6)
    np.testing.assert_allclose(encoder.encode(["drag"]), plain.encode(["a wing: drag"]), atol=1e-6)


def test_texts_are_counted_whole_with_their_prompt(bert_folder: Path) -> None:
    recipe = Recipe(max_tokens=32, query_prompt="the heat: ")
    encoder = BertEncoder(bert_folder, recipe=recipe)
    assert isinstance(encoder, CountsTokens) and encoder.max_tokens == 32
    # [CLS] and [SEP] stand around every text.
    assert encoder.count_tokens(["", "drag", "the " * 100, "\udcff"])[:3] == [2, 3, 102]
    with_prompt = BertEncoder(bert_folder).count_tokens(["the heat: drag"])
    assert encoder.count_tokens(["drag"], query=True) == with_prompt


def test_no_texts_make_no_vectors(bert_folder: Path) -> None:
    assert BertEncoder(bert_folder).encode([]).shape == (0, 48)


def test_undecodable_and_odd_texts_have_vectors(bert_folder: Path) -> None:
    vectors = BertEncoder(bert_folder, executor="numpy").encode(["wing \udcff", "\x00", "\u202e翼", " \n\t"])
    assert np.isfinite(vectors).all()


def test_torch_is_loaded_when_passages_pay_for_it(bert_folder: Path) -> None:
    encoder = BertEncoder(bert_folder)
    for _ in range(200):
        encoder.encode(["a wing and a plate"], query=True)  # 1,400 tokens: queries never pay
    few = encoder.encode(TEXTS)
    assert encoder._torch is None and encoder._numpy is not None
    for _ in range(10):  # small additions add up
        encoder.encode(TEXTS)
    assert encoder._torch is not None
    np.testing.assert_allclose(encoder.encode(TEXTS), few, atol=2e-6)


def test_bulk_without_torch_is_done_by_numpy(bert_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    encoder = BertEncoder(bert_folder)
    encoder.encode(TEXTS * 40)
    assert encoder._torch is None


@pytest.mark.parametrize("executor", EXECUTORS)
def test_threads_may_share_an_encoder(bert_folder: Path, executor: str) -> None:
    encoder = BertEncoder(bert_folder, executor=executor)
    expected = BertEncoder(bert_folder, executor=executor).encode(TEXTS)
    wrong: list[int] = []

    def work(seed: int) -> None:
        order = np.random.default_rng(seed).permutation(len(TEXTS))
        for _ in range(5):
            got = encoder.encode([TEXTS[n] for n in order])
            wrong.extend(np.flatnonzero(np.abs(got - expected[order]).max(axis=1) > 2e-6).tolist())

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_matryoshka_keeps_leading_numbers_at_unit_length(bert_folder: Path) -> None:
    whole, short = BertEncoder(bert_folder), BertEncoder(bert_folder, dim=16)
    expected = whole.encode(TEXTS)[:, :16]
    np.testing.assert_allclose(
        short.encode(TEXTS), expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-6
    )
    assert short.dim == 16 and short.fingerprint != whole.fingerprint


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_checkpoints_and_a_task_heads_prefix(bert_folder: Path, tmp_path: Path, dtype: str) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    folder = tmp_path / dtype
    shutil.copytree(bert_folder, folder)
    tensors = load_file(folder / "model.safetensors")
    half = {f"bert.{name}": tensor.to(getattr(torch, dtype)) for name, tensor in tensors.items()}
    save_file(half, folder / "model.safetensors")
    widened = tmp_path / "widened"
    shutil.copytree(bert_folder, widened)
    save_file({name[5:]: tensor.float() for name, tensor in half.items()}, widened / "model.safetensors")
    for executor in EXECUTORS:
        got = BertEncoder(folder, executor=executor).encode(TEXTS)
        np.testing.assert_allclose(got, BertEncoder(widened, executor="numpy").encode(TEXTS), atol=3e-6)


def test_bfloat16_stays_close(bert_folder: Path) -> None:
    import torch

    from deepwell.library.encoders.bert.layers_torch import TorchBert

    encoder = BertEncoder(bert_folder, executor="torch")
    exact = encoder.encode(TEXTS)
    encoder._torch = TorchBert(encoder._config, encoder._weights, "mean", dtype=torch.bfloat16)
    assert (encoder.encode(TEXTS) * exact).sum(axis=1).min() > 0.999


def test_other_variants_are_refused(bert_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "variant"
    shutil.copytree(bert_folder, folder)
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace('"hidden_act": "gelu"', '"hidden_act": "relu"'))
    with pytest.raises(ModelSourceError, match="hidden_act is 'relu'"):
        BertEncoder(folder)
    (folder / "config.json").write_text("{}")
    with pytest.raises(ModelSourceError, match="does not describe a BERT"):
        BertEncoder(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ModelSourceError, match="not readable JSON"):
        BertEncoder(folder)


def test_damaged_folders_say_what_is_wrong(bert_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(bert_folder, folder)
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(ModelSourceError, match="not a whole safetensors file: the file ends before"):
        BertEncoder(folder)
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelSourceError, match="not a whole safetensors file"):
        BertEncoder(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(MissingModelError, match="no weights"):
        BertEncoder(folder)
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelSourceError, match="not a tokenizer"):
        BertEncoder(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(MissingModelError, match="no tokenizer"):
        BertEncoder(folder)
