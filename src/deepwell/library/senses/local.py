"""``LocalSenses``: the one object that a reader is handed. It finds models, loads each once and keeps it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from deepwell.library.protocols import OcrLine, SoundTag, Transcript
from deepwell.library.records import Label

if TYPE_CHECKING:
    from PIL.Image import Image

    from deepwell.library.senses.labels import PictureClassifier
    from deepwell.library.senses.ocr import PageReader
    from deepwell.library.senses.sounds import SoundListener
    from deepwell.library.senses.speech import SpeechListener

_T = TypeVar("_T")


class LocalSenses:
    """``Senses`` on this machine's models and packages.

    Args:
        threads: Threads that each model may use. Files are read in several worker processes, so a worker is given 1 or
            few; None lets each model take all cores. Setting it also bounds PyTorch for the whole process.
        speech_model: Name of the Whisper model in the catalogue, or a path.
        model_folder: Finds a model's folder by name and raises ``MissingModelError``; tests give their own.

    One thread at a time uses a model; others wait.
    """

    def __init__(
        self,
        *,
        threads: int | None = None,
        speech_model: str = "whisper-tiny",
        model_folder: Callable[[str], Path] | None = None,
    ) -> None:
        self.threads = threads
        self.speech_model = speech_model
        self._model_folder = model_folder
        self._loaded: dict[str, object] = {}
        self._locks = {name: threading.RLock() for name in ("labels", "ocr", "speech", "sounds")}

    def ocr(self, image: Image) -> Sequence[OcrLine]:
        """Lines of text in reading order; empty when there are none. Raises ``MissingExtraError``."""
        with self._locks["ocr"]:
            return self._page_reader().read(image)

    def labels(self, image: Image) -> Sequence[Label]:
        """What the picture shows, best first. Raises ``MissingModelError`` or ``MissingExtraError``."""
        from deepwell.library.senses.pictures import to_rgb

        with self._locks["labels"]:
            return self.classifier().labels(to_rgb(image))

    def transcribe(self, path: Path) -> Transcript:
        """What is said in a recording. Raises ``MissingModelError``, ``MissingExtraError``, ``UnreadableFileError``."""
        with self._locks["speech"]:
            return self._speech_listener().transcribe(path)

    def sounds(self, path: Path) -> Sequence[SoundTag]:
        """What else is heard. Raises ``MissingModelError``, ``MissingExtraError``, ``UnreadableFileError``."""
        with self._locks["sounds"]:
            return self._sound_listener().tags(path)

    def classifier(self) -> PictureClassifier:
        """The picture classifier, loaded."""

        def load() -> PictureClassifier:
            from deepwell.library.senses import labels

            classifier = labels.PictureClassifier(self._folder(labels.MODEL))
            _ = classifier.network, classifier.names
            if self.threads is not None:
                import torch

                torch.set_num_threads(self.threads)
            return classifier

        return self._once("labels", load)

    def _page_reader(self) -> PageReader:
        def load() -> PageReader:
            from deepwell.library.senses.ocr import PageReader

            reader = PageReader(self.threads)
            _ = reader.engine
            return reader

        return self._once("ocr", load)

    def _speech_listener(self) -> SpeechListener:
        def load() -> SpeechListener:
            from deepwell.library.senses.speech import SpeechListener

            listener = SpeechListener(self._folder(self.speech_model), self.threads)
            _ = listener.model
            return listener

        return self._once("speech", load)

    def _sound_listener(self) -> SoundListener:
        def load() -> SoundListener:
            from deepwell.library.senses import sounds

            listener = sounds.SoundListener(self._folder(sounds.MODEL), self.threads)
            _ = listener.interpreter, listener.names
            return listener

        return self._once("sounds", load)

    def _once(self, name: str, load: Callable[[], _T]) -> _T:
        with self._locks[name]:
            if name not in self._loaded:
                self._loaded[name] = load()
            return self._loaded[name]  # type: ignore[return-value]

    def _folder(self, name: str) -> Path:
        if self._model_folder is not None:
            return self._model_folder(name)
        from deepwell import models

        return models.folder(name)


def one_thread() -> LocalSenses:
    """Senses for one of several worker processes, which share the cores."""
    return LocalSenses(threads=1)
