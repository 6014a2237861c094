"""What ``deepwell models inspect --quantise`` adds: what each part and the worst matrices lose."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from deepwell.cli.models import readable

if TYPE_CHECKING:
    from deepwell.lm.precision.integers import QuantisationError
    from deepwell.lm.weights.quantising import Quantisation

_WORST = 5


def measured(name: str, word: str) -> Quantisation:
    """The model's losses at ``int8`` or ``int4``; a bar where somebody is watching."""
    from deepwell.cli.conversions import counting_bar
    from deepwell.lm.weights.quantising import WORDS, quantisation

    with counting_bar(f"rounding to {word}", quiet_units=True) as progress:
        return quantisation(name, WORDS[word], on_progress=progress)


def rounding_json(found: Quantisation) -> dict[str, Any]:
    """For ``--json``; ``snr_db`` is null where nothing is lost."""
    return {
        "bits": found.bits,
        "bytes": found.bytes,
        **_error_json(found.error),
        "by_part": {part: _error_json(error) for part, error in found.by_part.items()},
        "worst": [
            {"name": one.name, "part": one.part, "bits": one.bits, "bytes": one.size, **_error_json(one.error)}
            for one in found.worst(_WORST)
        ],
    }


def _error_json(error: QuantisationError) -> dict[str, float | None]:
    return {"relative_error": error.relative, "snr_db": None if math.isinf(error.snr_db) else error.snr_db}


def rounding_fact(found: Quantisation) -> str:
    """One line for the facts."""
    return f"{readable(found.bytes)}; {_told(found.error)}"


def _told(error: QuantisationError) -> str:
    if not error.lost:
        return "nothing is lost: the file's weights are on this grid"
    return f"an error of {error.relative:.2%} of the weights, {error.snr_db:.1f} dB"


def parts_table(found: Quantisation) -> Iterator[tuple[str, ...]]:
    """Rows by part."""
    yield "rounded", "bits", "bytes", "error", "SNR dB"
    for part, error in found.by_part.items():
        own = [one for one in found.matrices if one.part == part]
        bits = "/".join(str(bits) for bits in sorted({one.bits for one in own}))
        yield part, bits, readable(sum(one.size for one in own)), *_cells(error)


def worst_table(found: Quantisation) -> Iterator[tuple[str, ...]]:
    """Rows of the matrices that lose most."""
    yield "worst", "bits", "error", "SNR dB"
    for one in found.worst(_WORST):
        yield one.name, str(one.bits), *_cells(one.error)


def _cells(error: QuantisationError) -> tuple[str, str]:
    return f"{error.relative:.2%}", "exact" if not error.lost else f"{error.snr_db:.1f}"
