"""What a run tells while it goes on: one frozen record for each thing that happens, for all who watch.

The loop makes them; the journal writes them as lines of JSON, the panel draws them, TensorBoard and the report plot
them. A watcher is any function that takes a record.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """A run begins, or goes on after it was stopped."""

    name: str
    step: int
    """Steps done before; 0 for a fresh run."""
    steps: int
    """Steps of the whole run."""
    parameters: int
    active_parameters: int
    trained_parameters: int
    train_tokens: int
    """Tokens of one pass over the data."""
    validation_tokens: int
    flops_per_token: float
    """Forward and backward, attention included."""
    peak_flops: float
    """Operations a second that this machine can do at the most, over all processes."""
    processes: int
    device: str
    precision: str
    recipe: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stepped:
    """One optimizer step. Losses are means over the step's predictions."""

    step: int
    """The first step is 1."""
    tokens: int
    """Since the beginning of the run, padding not counted."""
    loss: float
    mtp: tuple[float, ...]
    balance: float
    lr: float
    grad_norm: float
    """Before clipping."""
    sequences: int
    seconds: float
    tokens_per_second: float
    share_of_peak: float
    """Of the machine's operations; 0 where its peak is not known."""
    memory_mb: float
    """Highest so far, of this process (or of its GPU)."""
    loads: tuple[tuple[float, ...], ...]
    """For each layer with experts, MTP last: the share of the layer's choices that each expert got."""
    skipped: bool = False
    """The loss or the gradient was not finite; nothing was changed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Validated:
    """A look at what is held back."""

    step: int
    loss: float
    bits_per_byte: float
    predictions: int
    mtp_losses: tuple[float, ...] = ()
    mtp_right: tuple[float, ...] = ()
    """Share of further tokens that each MTP module's best guess got right."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """A text that the network wrote."""

    step: int
    prompt: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Noted:
    """Something worth a line: a checkpoint, a skipped step, a rollback."""

    step: int
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """The run is over, or was stopped."""

    step: int
    tokens: int
    seconds: float
    """Of training in this and earlier sittings, without preparation."""
    flops: float
    finished: bool
    """False where it was stopped and can go on."""
    model: str = ""
    """The folder of the trained model, or of its adapter."""


Record = Started | Stepped | Validated | Sampled | Noted | Ended
Watcher = Callable[[Record], None]
