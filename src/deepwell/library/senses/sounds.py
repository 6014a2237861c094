"""What is heard besides words: rain, a dog, music. YAMNet (521 AudioSet classes) on LiteRT.

YAMNet (https://github.com/tensorflow/models/tree/master/research/audioset/yamnet) looks at 0.975 seconds at a time.
Neighbouring windows that hear the same thing are joined into a stretch, whose scores are the mean over its windows.
"""

from __future__ import annotations

import csv
import importlib.util
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepwell.errors import MissingExtraError, ModelSourceError
from deepwell.library.protocols import SoundTag
from deepwell.library.records import Label
from deepwell.library.senses.recordings import RATE, pieces

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MODEL = "yamnet"

_LEAST_SCORE = 0.1
"""Lower than a classifier's usual threshold: everyday sounds get faint tags (``benchmarks/senses.py sounds``)."""
_FADED = 0.25
_KEEP = 5
_SILENT = 0.001


@dataclass
class SoundListener:
    """YAMNet over files.

    Attributes:
        folder: Holds ``yamnet.tflite`` and ``yamnet_class_map.csv`` (index, mid, display_name).
        threads: Threads to use; None for one, since one window is too little work to share.
    """

    folder: Path
    threads: int | None = None

    @cached_property
    def interpreter(self) -> Any:
        """The LiteRT interpreter, ready for one window of samples."""
        if importlib.util.find_spec("ai_edge_litert") is None:
            raise MissingExtraError("sound tags need ai-edge-litert", hint="Run: pip install 'deepwell[sounds]'")
        files = sorted(self.folder.glob("*.tflite"))
        if not files:
            raise ModelSourceError(f"{self.folder} holds no .tflite file", hint=f"Run: deepwell models pull {MODEL}")
        from ai_edge_litert.interpreter import Interpreter

        with _hushed():
            interpreter = Interpreter(model_path=str(files[0]), num_threads=self.threads or 1)
            interpreter.allocate_tensors()
        return interpreter

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Display names of the classes in the order of their index."""
        files = sorted(self.folder.glob("*class_map.csv"))
        if not files:
            raise ModelSourceError(f"{self.folder} holds no class map", hint=f"Run: deepwell models pull {MODEL}")
        with files[0].open(encoding="utf-8", newline="") as file:
            return tuple(row["display_name"] for row in csv.DictReader(file))

    def tags(self, path: Path) -> list[SoundTag]:
        """Stretches of sound in order of time; silence is left out."""
        import numpy as np

        window = int(self.interpreter.get_input_details()[0]["shape"][-1])
        if window < RATE // 10:  # the model takes any length; give it the length that it was trained on
            window = 15_600
        rows: list[NDArray[np.float32]] = []
        rest = np.zeros(0, dtype=np.float32)
        for part in pieces(path):
            rest = np.concatenate([rest, part])
            whole = len(rest) // window
            rows.extend(self._scores(samples) for samples in rest[: whole * window].reshape(whole, window))
            rest = rest[whole * window :]
        seconds = len(rows) * window / RATE + len(rest) / RATE
        if len(rest) > window // 4 or not rows:
            rows.append(self._scores(np.pad(rest, (0, window - len(rest)))))
        return stretches(np.stack(rows), self.names, window / RATE, seconds)

    def _scores(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """Class scores [521] of one window of samples; zeros when there is nothing to hear."""
        import numpy as np

        if float(np.abs(samples).max(initial=0.0)) < _SILENT:
            return np.zeros(len(self.names), dtype=np.float32)
        details = self.interpreter.get_input_details()[0]
        shaped = samples.reshape(1, -1) if len(details["shape"]) == 2 else samples
        self.interpreter.set_tensor(details["index"], shaped.astype(np.float32))
        self.interpreter.invoke()
        scores = np.asarray(self.interpreter.get_tensor(self.interpreter.get_output_details()[0]["index"]))
        mean: NDArray[np.float32] = scores.reshape(-1, len(self.names)).mean(axis=0, dtype=np.float32)
        return mean


@contextmanager
def _hushed() -> Iterator[None]:
    """LiteRT announces its delegate on the process's standard error, below Python's; it is turned away meanwhile."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def stretches(scores: NDArray[np.float32], names: Sequence[str], step: float, seconds: float) -> list[SoundTag]:
    """Join windows that hear the same.

    Args:
        scores: Class scores of windows [N, classes], 0 to 1.
        names: Class names in order.
        step: Seconds from one window's start to the next.
        seconds: Length of the recording.

    A stretch goes on while its loudest class is heard, not far below what is then the loudest, and bridges a silent
    window.
    """
    import numpy as np

    audible = scores >= _LEAST_SCORE
    audible[:, [i for i, name in enumerate(names) if name == "Silence"]] = False
    tags: list[SoundTag] = []
    first: int | None = None
    subject, last = -1, -1

    def close() -> None:
        if first is None:
            return
        mean = np.where(audible[first : last + 1], scores[first : last + 1], 0.0).mean(axis=0)
        order = [int(i) for i in np.argsort(-mean, kind="stable")[:_KEEP] if mean[i] >= _LEAST_SCORE / 2]
        labels = tuple(Label(names[i], round(float(mean[i]), 3)) for i in order)
        end = min(seconds, (last + 1) * step)
        if labels and end > first * step:
            tags.append(SoundTag(round(first * step, 2), round(end, 2), labels))

    for i, row in enumerate(audible):
        if first is not None and row[subject] and scores[i, subject] >= _FADED * scores[i][row].max():
            last = i
        elif first is not None and i - last <= 1 and not row.any():
            continue
        else:
            close()
            first = None
            if row.any():
                subject = int(np.where(row, scores[i], -1.0).argmax())
                first = last = i
    close()
    return tags
