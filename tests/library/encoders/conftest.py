"""Tiny random checkpoints, saved as a model hub would publish them."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

WORDS = "the a wing lift drag flow boundary layer heat of in and shock wave ##s ##ing ##ed plate supersonic".split()


def write_wordpiece_tokenizer(folder: Path) -> None:
    """A BERT tokenizer over a few words; it stores padding and truncation, as MiniLM's does."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *"abcdefghijklmnopqrstuvwxyz", *"0123456789:."]
    tokenizer = Tokenizer(models.WordPiece({word: n for n, word in enumerate(vocabulary)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.enable_padding(length=128)
    tokenizer.enable_truncation(128)
    tokenizer.save(str(folder / "tokenizer.json"))


def write_modules(folder: Path, pooling: str = "mean", *, max_tokens: int | None = None, dense: bool = False) -> None:
    """The files of sentence-transformers."""
    steps = [("", "Transformer"), ("1_Pooling", "Pooling")]
    if dense:
        steps.append(("2_Dense", "Dense"))
    steps.append(("3_Normalize", "Normalize"))
    modules = [
        {"idx": n, "name": str(n), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for n, (path, kind) in enumerate(steps)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    flags = {"mean": "mean_tokens", "cls": "cls_token", "max": "max_tokens", "last": "lasttoken"}
    (folder / "1_Pooling").mkdir(exist_ok=True)
    config = {f"pooling_mode_{flag}": mode == pooling for mode, flag in flags.items()}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(config))
    if max_tokens is not None:
        (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": max_tokens}))


@pytest.fixture(scope="session")
def dress() -> Callable[..., None]:
    """``dress(folder, pooling, max_tokens=..., dense=...)`` adds a tokenizer and sentence-transformers' files."""

    def put(folder: Path, pooling: str = "mean", *, max_tokens: int | None = None, dense: bool = False) -> None:
        write_wordpiece_tokenizer(folder)
        write_modules(folder, pooling, max_tokens=max_tokens, dense=dense)

    return put


@pytest.fixture(scope="session")
def bert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of 3 layers with random weights, biases and norms (so that none can be forgotten), mean pooling."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny-bert"
    folder.mkdir()
    torch.manual_seed(7)
    config = transformers.BertConfig(
        vocab_size=64, hidden_size=48, num_hidden_layers=3, num_attention_heads=4, intermediate_size=80,
        max_position_embeddings=40,
    )  # fmt: skip
    network = transformers.BertModel(config)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    network.save_pretrained(folder)
    write_wordpiece_tokenizer(folder)
    write_modules(folder, "mean", max_tokens=32)
    return folder
