"""A recipe: everything that a training run does, as one frozen record.

People write recipes as TOML (``reading`` turns a file into a ``Recipe`` and names the line of what is wrong); every
section below is a table of that file, every field a key. Checks of one section stand in its ``__post_init__``, those
between sections in ``Recipe.__post_init__``. All of them raise ``RecipeError`` whose message begins with the dotted
key, such as ``optimizer.lr``: that is how ``reading`` finds the line. What goes in stands in ``recipe_inputs``.

Schedules are lists of ``[from, value]`` pairs whose ``from`` is a share of the run between 0 and 1.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from deepwell.lm.training.recipe_checks import Steps, check, check_steps, one_of, value_at
from deepwell.lm.training.recipe_inputs import (
    DataSection,
    EsftSection,
    LoraSection,
    ModelSection,
    SourceFormat,
    SourceSection,
    TokenizerSection,
    Tune,
)

__all__ = [
    "BalanceSection", "BatchSection", "CheckpointSection", "DataSection", "EsftSection", "GuardSection", "Kind",
    "LogSection", "LoraSection", "MemorySection", "ModelSection", "MtpSection", "OptimizerSection",
    "ParallelSection", "PrecisionSection", "Recipe", "ScheduleSection", "SourceFormat", "SourceSection", "Steps",
    "TokenizerSection", "Tune", "value_at",
]  # fmt: skip

Kind = Literal["pretrain", "sft"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSection:
    """``[batch]``: how long the run is and how many rows a step has. One of ``steps``, ``tokens``, ``epochs``."""

    steps: int = 0
    tokens: int = 0
    epochs: float = 0.0
    sequences: int = 8
    """Rows of a step, over all processes."""
    micro_sequences: int = 0
    """Rows computed at once in one process; the gradients of a step's micro-batches add up. 0: all at once."""
    ramp: Steps = ()
    """Smaller steps at the beginning, as pairs [share, rows]; the last has ``sequences`` (V3: 3072 to 15360)."""

    def __post_init__(self) -> None:
        given = [name for name in ("steps", "tokens", "epochs") if getattr(self, name)]
        check(
            len(given) == 1,
            "batch",
            f"needs exactly one of steps, tokens and epochs, and has {', '.join(given) or 'none'}",
        )
        check(min(self.steps, self.tokens, self.epochs) >= 0, f"batch.{given[0]}", "is negative")
        check(self.sequences >= 1, "batch.sequences", f"is {self.sequences}; it is at least 1")
        check(self.micro_sequences >= 0, "batch.micro_sequences", f"is {self.micro_sequences}; it is at least 0")
        if self.ramp:
            check_steps("batch.ramp", self.ramp)
            check(all(value >= 1 for _, value in self.ramp), "batch.ramp", "has steps without rows")
            last = int(self.ramp[-1][1])
            check(
                last == self.sequences,
                "batch.ramp",
                f"ends with {last} rows, and batch.sequences is {self.sequences}",
                "let the last pair say from where on steps have all their rows",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerSection:
    """``[optimizer]``: AdamW as in V3 section 4.2, or Muon for matrices and AdamW for the rest."""

    name: Literal["adamw", "muon"] = "adamw"
    lr: float = 2.2e-4
    """The highest learning rate."""
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1
    """Of matrices alone: never of norms, biases, the embedding or the router's bias."""
    clip: float = 1.0
    """Largest norm of all gradients together; 0: no clipping."""
    moments: Literal["bf16", "f32"] = "bf16"
    muon_lr: float = 2e-3
    muon_momentum: float = 0.95

    def __post_init__(self) -> None:
        one_of("optimizer.name", self.name, ("adamw", "muon"))
        one_of("optimizer.moments", self.moments, ("bf16", "f32"))
        for name in ("lr", "eps", "muon_lr"):
            check(getattr(self, name) > 0, f"optimizer.{name}", f"is {getattr(self, name)}; it is above 0")
        for key, share in (("betas", self.betas[0]), ("betas", self.betas[1]), ("muon_momentum", self.muon_momentum)):
            check(0 <= share < 1, f"optimizer.{key}", f"has {share}; it is at least 0 and below 1")
        check(self.weight_decay >= 0, "optimizer.weight_decay", f"is {self.weight_decay}; it is at least 0")
        check(self.clip >= 0, "optimizer.clip", f"is {self.clip}; it is at least 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleSection:
    """``[schedule]``: the learning rate as a factor of ``optimizer.lr`` over the run."""

    kind: Literal["constant", "cosine", "linear", "steps"] = "cosine"
    warmup: float = 0.01
    """Steps of linear warm-up: below 1 a share of the run, else a number of steps."""
    hold: float = 0.0
    """Share of the run at the full rate before the decay begins (V3: 10T of 14.8T tokens)."""
    until: float = 1.0
    """Share of the run at which the decay ends; ``final`` holds from there, then ``steps``."""
    final: float = 0.1
    """Factor at the end of the decay."""
    steps: Steps = ()
    """Factors from shares of the run on: all of the schedule for ``kind = "steps"``, else what follows the decay."""

    def __post_init__(self) -> None:
        one_of("schedule.kind", self.kind, ("constant", "cosine", "linear", "steps"))
        check(self.warmup >= 0, "schedule.warmup", f"is {self.warmup}; it is at least 0")
        check(
            0 <= self.hold <= self.until <= 1,
            "schedule.hold",
            f"({self.hold}) and until ({self.until}) must rise within 0 to 1",
        )
        check(0 <= self.final <= 1, "schedule.final", f"is {self.final}; it lies between 0 and 1")
        check(self.kind != "steps" or bool(self.steps), "schedule.steps", "is empty")
        if self.kind == "steps":
            check_steps("schedule.steps", self.steps)
        begins = [begin for begin, _ in self.steps]
        check(
            begins == sorted(set(begins)) and all(0 <= begin < 1 for begin in begins),
            "schedule.steps",
            "has shares of the run that do not rise within 0 to 1",
        )
        check(all(value >= 0 for _, value in self.steps), "schedule.steps", "has a negative factor")


@dataclass(frozen=True, slots=True, kw_only=True)
class BalanceSection:
    """``[balance]``: how load is spread over experts without a loss that fights the main one (V3 section 2.1.2)."""

    speed: Steps = ((0.0, 0.001), (0.97, 0.0))
    """How much the bias of an expert moves after a step (V3: 0.001, then 0 for the last 500B of 14.8T tokens).
    For ``model.tune = "full"``: an adapter's file has no place for it, and ESFT leaves routers alone."""
    alpha: float = 1e-4
    """Weight of the sequence-wise balance loss; replaces the config's ``aux_loss_alpha``."""

    def __post_init__(self) -> None:
        check_steps("balance.speed", self.speed)
        check(all(value >= 0 for _, value in self.speed), "balance.speed", "is negative")
        check(self.alpha >= 0, "balance.alpha", f"is {self.alpha}; it is at least 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class PrecisionSection:
    """``[precision]``: in what numbers the network computes. Master weights and gradients are float32 in any case."""

    compute: Literal["bf16", "f32", "fp8"] = "bf16"
    """Of activations and products; fp8: bf16 with block-scaled FP8 products (V3 section 3.3)."""
    scaling: Literal["block", "tensor"] = "block"
    """FP8 scales for tiles of 1 x 128 and blocks of 128 x 128, or one for each tensor (for comparison)."""
    scales: Literal["float32", "power-of-two"] = "float32"
    keep: Literal["fp8", "bf16"] = "fp8"
    """What FP8 products keep of their inputs for the backward pass."""

    def __post_init__(self) -> None:
        one_of("precision.compute", self.compute, ("bf16", "f32", "fp8"))
        one_of("precision.scaling", self.scaling, ("block", "tensor"))
        one_of("precision.scales", self.scales, ("float32", "power-of-two"))
        one_of("precision.keep", self.keep, ("fp8", "bf16"))


@dataclass(frozen=True, slots=True, kw_only=True)
class MemorySection:
    """``[memory]``: what is computed again in the backward pass in place of being kept."""

    recompute: Literal["none", "attention", "blocks"] = "none"
    """``attention``: up-projections and attention of each layer (V3 section 3.2.3); ``blocks``: whole layers."""

    def __post_init__(self) -> None:
        one_of("memory.recompute", self.recompute, ("none", "attention", "blocks"))


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardSection:
    """``[guard]``: what happens when a loss or a gradient is not finite."""

    patience: int = 3
    """A step whose loss is not finite is skipped; so many in a row, and the run goes back to its last checkpoint."""
    rollbacks: int = 2
    """So often at most; the next time the run ends with an error."""

    def __post_init__(self) -> None:
        check(self.patience >= 1, "guard.patience", f"is {self.patience}; it is at least 1")
        check(self.rollbacks >= 0, "guard.rollbacks", f"is {self.rollbacks}; it is at least 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointSection:
    """``[checkpoint]``: when the state of the run is saved, and the model that it ends with."""

    every: int = 200
    """Steps between checkpoints; 0: only at the end. One is also written on Ctrl-C and SIGTERM."""
    keep: int = 2
    """Newest checkpoints that stay."""
    precision: Literal["bf16", "f32", "fp8"] = "bf16"
    """Of the model that is written at the end."""

    def __post_init__(self) -> None:
        check(self.every >= 0, "checkpoint.every", f"is {self.every}; it is at least 0")
        check(self.keep >= 1, "checkpoint.keep", f"is {self.keep}; it is at least 1")
        one_of("checkpoint.precision", self.precision, ("bf16", "f32", "fp8"))


@dataclass(frozen=True, slots=True, kw_only=True)
class LogSection:
    """``[log]``: what one sees."""

    validate_every: int = 200
    """Steps between looks at what was held back; 0: only at the end."""
    validate_rows: int = 64
    """Rows of what was held back that are looked at, evenly over all of it; 0: all."""
    sample_every: int = 0
    """Steps between samples; 0: only at the end."""
    prompts: tuple[str, ...] = ()
    """What samples begin with, for ``kind = "sft"`` what a user says; empty: the beginning of a text."""
    sample_tokens: int = 64
    tensorboard: bool = True
    price_per_hour: float = 0.0
    """Of this machine, for the report; in whatever currency."""
    peak_tflops: float = 0.0
    """What a process's GPU or cores can do at the most, for the share that is reached; 0: a large product is timed."""

    def __post_init__(self) -> None:
        for name in (
            "validate_every",
            "validate_rows",
            "sample_every",
            "sample_tokens",
            "price_per_hour",
            "peak_tflops",
        ):
            check(getattr(self, name) >= 0, f"log.{name}", f"is {getattr(self, name)}; it is at least 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class ParallelSection:
    """``[parallel]``: under torchrun, how processes share the work."""

    data: Literal["shard", "copy"] = "shard"
    """Weights, gradients and moments in pieces over the processes (FSDP2), or whole in each."""
    experts: int = 1
    """Processes over which the experts of a layer are spread; divides the number of processes."""

    def __post_init__(self) -> None:
        one_of("parallel.data", self.data, ("shard", "copy"))
        check(self.experts >= 1, "parallel.experts", f"is {self.experts}; it is at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class MtpSection:
    """``[mtp]``: multi-token prediction (V3 section 2.2). Its depth is the config's ``num_nextn_predict_layers``."""

    weight: Steps = ((0.0, 0.3), (0.67, 0.1))
    """Lambda over the run (V3: 0.3 for 10T tokens, 0.1 for the other 4.8T)."""

    def __post_init__(self) -> None:
        check_steps("mtp.weight", self.weight)
        check(all(value >= 0 for _, value in self.weight), "mtp.weight", "is negative")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A whole training run. See the module for how it is written and checked."""

    kind: Kind = "pretrain"
    about: str = ""
    """A line for ``deepwell train --list``."""
    seed: int = 0
    threads: int = 0
    """Of one process on a CPU; 0: what torch takes."""
    model: ModelSection
    tokenizer: TokenizerSection = field(default_factory=TokenizerSection)
    data: DataSection
    batch: BatchSection
    optimizer: OptimizerSection = OptimizerSection()
    schedule: ScheduleSection = ScheduleSection()
    balance: BalanceSection = BalanceSection()
    mtp: MtpSection = MtpSection()
    precision: PrecisionSection = PrecisionSection()
    memory: MemorySection = MemorySection()
    guard: GuardSection = GuardSection()
    checkpoint: CheckpointSection = CheckpointSection()
    log: LogSection = LogSection()
    parallel: ParallelSection = ParallelSection()

    def __post_init__(self) -> None:
        one_of("kind", self.kind, ("pretrain", "sft"))
        check(0 <= self.seed < 2**63, "seed", f"is {self.seed}; it is at least 0 and below 2^63")
        check(self.threads >= 0, "threads", f"is {self.threads}; it is at least 0")
        talks = [bool(source.messages or source.prompt) for source in self.data.sources]
        if self.kind == "sft":
            check(
                all(talks),
                "data.sources.messages",
                "is missing",
                "fine-tuning on chats needs messages, or prompt and answer",
            )
            check(self.data.fim_rate == 0, "data.fim_rate", "is for pretraining: a chat is not filled in")
        else:
            check(
                not any(talks),
                "data.sources.messages",
                'is for kind = "sft"',
                'set kind = "sft", or name the field of the text',
            )
        micro = self.batch.micro_sequences
        check(
            micro <= self.batch.sequences,
            "batch.micro_sequences",
            f"is {micro}, and a step has {self.batch.sequences} rows",
        )

    def replace(self, **sections: Any) -> Recipe:
        """A copy with some sections changed, checked again."""
        return dataclasses.replace(self, **sections)
