"""The sections of a recipe that say what goes in: the network, its tokenizer, the text and its rows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from deepwell.lm.training.recipe_checks import check, one_of

Tune = Literal["full", "lora", "esft"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraSection:
    """``[model.lora]``: low-rank adapters; see ``deepwell.lm.weights.lora``."""

    rank: int = 16
    alpha: float = 32.0
    targets: tuple[str, ...] = ("all-linear",)
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check(self.rank >= 1, "model.lora.rank", f"is {self.rank}; an adapter has at least 1")
        check(0 <= self.dropout < 1, "model.lora.dropout", f"is {self.dropout}; it is at least 0 and below 1")
        check(bool(self.targets), "model.lora.targets", "is empty")


@dataclass(frozen=True, slots=True, kw_only=True)
class EsftSection:
    """``[model.esft]``: tune only the experts that a task uses (arXiv 2407.01906)."""

    by: Literal["gate", "token"] = "gate"
    """Rank experts by their average gate score, or by the share of tokens that they get."""
    share: float = 0.2
    """Take the best experts of each layer until their scores sum to this share."""
    sample_tokens: int = 131_072
    """Of the training data, looked at to rank the experts."""
    tune_shared: bool = False
    tune_rest: bool = False
    """Also attention, norms, embedding and head."""

    def __post_init__(self) -> None:
        one_of("model.esft.by", self.by, ("gate", "token"))
        check(0 < self.share <= 1, "model.esft.share", f"is {self.share}; it lies above 0 and up to 1")
        check(self.sample_tokens > 0, "model.esft.sample_tokens", f"is {self.sample_tokens}; it is above 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSection:
    """``[model]``: what is trained. Exactly one of ``start`` and ``named`` (or a whole ``[model.config]``)."""

    start: str = ""
    """A model to go on from: a name, a folder or a GGUF file, as ``deepwell.lm.load`` takes."""
    named: str = ""
    """A shape with random weights: a name of ``ModelConfig.named``."""
    config: dict[str, Any] = field(default_factory=dict)
    """Fields of ``ModelConfig``: over those of ``named``, or all of them."""
    tune: Tune = "full"
    lora: LoraSection = LoraSection()
    esft: EsftSection = EsftSection()

    def __post_init__(self) -> None:
        one_of("model.tune", self.tune, ("full", "lora", "esft"))
        check(not (self.start and self.named), "model.named", "and model.start exclude each other")
        check(
            bool(self.start or self.named or self.config), "model", "names no network", "set model.named or model.start"
        )
        check(not (self.start and self.config), "model.config", "describes a new network, and model.start an old one")
        check(bool(self.start) or self.tune == "full", "model.tune", f"is {self.tune!r}, which needs model.start")


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerSection:
    """``[tokenizer]``: of ``model.start`` where that is given; else ``start``, or one trained on the run's own text."""

    start: str = ""
    """A model's name or a folder with ``tokenizer.json``."""
    vocab_size: int = 8192
    """Of a tokenizer to be trained, control tokens included."""
    sample_mb: float = 64.0
    """Megabytes of the training text that it is trained on."""

    def __post_init__(self) -> None:
        check(
            self.vocab_size >= 300,
            "tokenizer.vocab_size",
            f"is {self.vocab_size}; 256 bytes and the control tokens need 300",
        )
        check(self.sample_mb > 0, "tokenizer.sample_mb", f"is {self.sample_mb}; it is above 0")


SourceFormat = Literal["auto", "text", "jsonl", "parquet", "huggingface"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceSection:
    """``[[data.sources]]``: files of one kind."""

    path: str = ""
    """A file, a folder, or a pattern (``docs/**/*.md``), relative to the recipe; or a data set's name."""
    format: SourceFormat = "auto"
    text: str = "text"
    """The field with the text, of JSONL, Parquet and data sets."""
    messages: str = ""
    """The field with a conversation: a list of {role, content}. For ``kind = "sft"``."""
    prompt: str = ""
    """In place of ``messages``: the field with what the user says; ``answer`` is the field with the reply."""
    answer: str = ""
    system: str = ""
    """A system message, the same for every row."""
    split: str = "train"
    """Of a Hugging Face data set."""
    epochs: float = 1.0
    """How often its documents come in one pass over the data; 0.5 takes every second one."""

    def __post_init__(self) -> None:
        check(bool(self.path), "data.sources.path", "is missing")
        one_of("data.sources.format", self.format, ("auto", "text", "jsonl", "parquet", "huggingface"))
        check(bool(self.prompt) == bool(self.answer), "data.sources.answer", "and data.sources.prompt go together")
        check(
            not (self.messages and self.prompt), "data.sources.messages", "and data.sources.prompt exclude each other"
        )
        check(self.epochs > 0, "data.sources.epochs", f"is {self.epochs}; it is above 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSection:
    """``[data]``: what is learned from, and in which rows."""

    sources: tuple[SourceSection, ...] = ()
    sequence_length: int = 512
    """Tokens of a row."""
    pack: bool = True
    """Fill rows with several documents; else each document is a row of its own, cut or padded."""
    mask_documents: bool = False
    """Packed documents do not see each other (V3 packs without for pretraining, with for fine-tuning)."""
    fim_rate: float = 0.0
    """Share of documents turned into prefix, suffix, middle (V3 section 4.1: 0.1)."""
    validation: float = 0.01
    """Share of documents, chosen by their hash, that are held back."""
    deduplicate: bool = True
    """Leave out documents that are equal, or nearly (MinHash, Jaccard 0.8), to an earlier one."""
    max_documents: int = 0
    """Read so many documents at most; 0: all."""

    def __post_init__(self) -> None:
        check(bool(self.sources), "data.sources", "is empty", "add a [[data.sources]] with a path")
        check(self.sequence_length >= 8, "data.sequence_length", f"is {self.sequence_length}; it is at least 8")
        check(0 <= self.fim_rate <= 1, "data.fim_rate", f"is {self.fim_rate}; it lies between 0 and 1")
        check(0 <= self.validation < 1, "data.validation", f"is {self.validation}; it is at least 0 and below 1")
        check(self.max_documents >= 0, "data.max_documents", f"is {self.max_documents}; it is at least 0")
