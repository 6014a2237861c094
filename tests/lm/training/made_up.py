"""The records of a run that never was, for what shows runs: a mixture of experts that learns."""

import math
import random
from collections.abc import Iterator

from deepwell.lm.training.records import Ended, Noted, Record, Sampled, Started, Stepped, Validated


def run(
    *, steps: int = 60, layers: int = 3, experts: int = 8, mtp: int = 1, look_every: int = 20, price: float = 0.4,
    name: str = "tales", skipped: tuple[int, ...] = (), until: int = 0,
) -> Iterator[Record]:  # fmt: skip
    """Records of a run of ``steps``; stopped after ``until`` if that is given."""
    dice = random.Random(0)
    layers += mtp if layers else 0
    yield Started(
        name=name, step=0, steps=steps, parameters=42_310_000, active_parameters=12_450_000 if layers else 42_310_000,
        trained_parameters=42_310_000, train_tokens=5_000_000, validation_tokens=50_000, flops_per_token=1.2e8,
        peak_flops=4.4e11, processes=1, device="cpu", precision="bf16",
        recipe={"kind": "pretrain", "batch": {"steps": steps}, "log": {"price_per_hour": price}},
    )  # fmt: skip
    step = tokens = 0
    for step in range(1, (until or steps) + 1):
        tokens += 4096
        lost = step in skipped
        loss = 2 + 6 * math.exp(-step / 20) + dice.gauss(0, 0.1)
        raw = [[math.exp(dice.gauss(0, 0.4)) for _ in range(experts)] for _ in range(layers)]
        yield Stepped(
            step=step, tokens=tokens, loss=math.nan if lost else loss, mtp=tuple(loss + 1 + k for k in range(mtp)),
            balance=1e-4, lr=2e-4, grad_norm=math.inf if lost else 0.7, sequences=8, seconds=0.5,
            tokens_per_second=8192.0, share_of_peak=0.31, memory_mb=1830.0,
            loads=tuple(tuple(one / sum(row) for one in row) for row in raw), skipped=lost,
        )  # fmt: skip
        if lost:
            yield Noted(step=step, message="skipped: the loss is not finite")
        if look_every and step % look_every == 0:
            yield Validated(
                step=step, loss=loss + 0.1, bits_per_byte=loss / 3, predictions=9000,
                mtp_losses=(loss + 1,) * mtp, mtp_right=(0.25,) * mtp,
            )  # fmt: skip
            yield Sampled(step=step, prompt="Once <upon>", text="a time & \x1b[31m\nthere was")
    yield Ended(step=step, tokens=tokens, seconds=step * 0.5, flops=tokens * 1.2e8, finished=not until, model="model")
