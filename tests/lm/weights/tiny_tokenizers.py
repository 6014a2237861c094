"""Tiny tokenizers trained on the spot: a byte-level one in a folder, and a SentencePiece one as GGUF metadata."""

import io
import json
from pathlib import Path
from typing import Any

from deepwell.lm.weights.tokenizer_splits import SPLITTINGS

WORDS = [
    "the well is deep and the water is cold, isn't it? I'LL say 1234567 times: x += 1;\n\n    return [a, b]\n",
    "Le puits est profond, naïve café. Brunnen größer. Колодец глубокий. 井戸は深い。漢字かな 한국어 😀😀 👩‍👩‍👧",
    "def f(x):\n\treturn x ** 2  # done\r\n\r\nHTTPServer camelCase snake_case <b>bold</b> <|x|> |> <|",
] * 20

CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
DEEPSEEK = (
    "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>", "<think>", "</think>",
    "<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>",
    "<｜tool▁outputs▁begin｜>", "<｜tool▁outputs▁end｜>", "<｜tool▁output▁begin｜>", "<｜tool▁output▁end｜>",
)  # fmt: skip
LLAMA3 = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
MISTRAL = ("<s>", "</s>", "[INST]", "[/INST]")
LLAMA2 = ("<s>", "</s>")


def write_byte_level(
    folder: Path,
    *,
    controls: tuple[str, ...] = CHATML,
    pre: str = "qwen2",
    plain: tuple[str, ...] = (),
    config: dict[str, Any] | None = None,
    template: Any = None,
) -> Path:
    """Train one on ``WORDS`` and write the folder. DeepSeek's mark-up is not special, as in DeepSeek's own files."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, trainers

    splitting = SPLITTINGS[pre]
    head = {"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": {}, "merges": []}}
    empty = {
        **head,
        "pre_tokenizer": splitting.pre_tokenizer(),
        "normalizer": {"type": "NFC"} if splitting.nfc else None,
    }
    tokenizer = Tokenizer.from_str(json.dumps(empty))
    assert isinstance(tokenizer.model, models.BPE)
    tokenizer.decoder = decoders.ByteLevel()
    from tokenizers.pre_tokenizers import ByteLevel

    tokenizer.train_from_iterator(
        WORDS, trainers.BpeTrainer(vocab_size=600, initial_alphabet=ByteLevel.alphabet(), show_progress=False)
    )
    shown = {"<think>", "</think>", "<｜User｜>", "<｜Assistant｜>"}
    for text in controls:
        tokenizer.add_tokens([AddedToken(text, special=text not in shown and "tool" not in text, normalized=False)])
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in plain])
    folder.mkdir(parents=True, exist_ok=True)
    description = json.loads(tokenizer.to_str())
    description["model"]["ignore_merges"] = splitting.ignore_merges
    (folder / "tokenizer.json").write_text(json.dumps(description), encoding="utf-8")
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False,
        "bos_token": controls[0], "eos_token": controls[1] if controls is not CHATML else controls[2],
    }  # fmt: skip
    if template is not None:
        settings["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, **(config or {})}), encoding="utf-8")
    return folder


def sentencepiece_model() -> tuple[Any, dict[str, Any]]:
    """A trained SentencePiece processor and the GGUF metadata that llama.cpp's converter writes for it."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(line for text in WORDS for line in text.split("\n") if line), model_writer=model,
        model_type="bpe", vocab_size=480, byte_fallback=True, character_coverage=0.98, split_digits=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, minloglevel=2, num_threads=1,
    )  # fmt: skip
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    tokens, scores, types = [], [], []
    for number in range(processor.get_piece_size()):
        tokens.append(processor.id_to_piece(number))
        scores.append(processor.get_score(number))
        types.append(
            6
            if processor.is_byte(number)
            else 2
            if processor.is_unknown(number)
            else 3
            if processor.is_control(number)
            else 1
        )
    fields = {
        "tokenizer.ggml.model": "llama", "tokenizer.ggml.pre": "default", "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": scores, "tokenizer.ggml.token_type": types, "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.unknown_token_id": 0, "tokenizer.ggml.add_bos_token": True,
    }  # fmt: skip
    return processor, fields
