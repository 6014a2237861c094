"""The one class that a Python user of a library needs: it opens the rooms and hands each what it works with.

    with deepwell.Library("notes") as lib:
        lib.add("~/Documents")
        hits = lib.search("when was the bridge painted")
        answer = lib.ask("When was the bridge painted?")

Opening is cheap: encoders and indexes are loaded at the first call that needs them, once. Reading (``search``, ``ask``,
``status``) is safe from several threads; of those who write, one at a time, in this or any other process, holds the
library, and the next waits.
"""

from __future__ import annotations

import datetime as dt
import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from deepwell.errors import DeepwellError
from deepwell.library.records import KINDS, AddReport, Answer, Filters, Kind, Label, Query, Results, Status
from deepwell.paths import default_library

if TYPE_CHECKING:
    from types import TracebackType

    import numpy as np
    from numpy.typing import NDArray

    from deepwell.library.encoders.conse import Conse
    from deepwell.library.indexing import Indexer, ProgressCallback
    from deepwell.library.protocols import ChatModel, Delta, ImageEncoder, Senses, TextEncoder
    from deepwell.library.search import Searcher
    from deepwell.library.store import Store

TEXT_ENCODER = "all-minilm-l6-v2"
IMAGE_ENCODER = "efficientnet-lite0"

_BY_LIKENESS = "for pictures like a picture"

When = float | dt.datetime | dt.date


class Library:
    """A collection of files made searchable, in a folder of its own.

    Args:
        path: The library's folder; None is ``DEEPWELL_LIBRARY``, else the platform's data folder.
        create: Make the library if there is none; otherwise that is a ``LibraryDamagedError``.
        text_encoder: Name, folder or object of the encoder for words. None keeps the one that the library was made
            with (all-MiniLM-L6-v2 for a new one). Another one is switched to by the next ``add`` or ``sync``, which
            embeds everything again while searches go on with the old vectors.
        image_encoder: The same for pictures.
        wait_s: Seconds to wait when another process is writing; negative waits for ever.
        workers: Processes that read files; None is one for each core.

    Raises:
        LibraryDamagedError: The folder is not a library, or is from a newer version.
    """

    def __init__(
        self,
        path: str | Path | None = None,
        *,
        create: bool = True,
        text_encoder: str | Path | TextEncoder | None = None,
        image_encoder: str | Path | ImageEncoder | None = None,
        wait_s: float = 60.0,
        workers: int | None = None,
    ) -> None:
        from deepwell.library.store import Store

        self.path = Path(path).expanduser().absolute() if path is not None else default_library().absolute()
        self._store: Store = Store.open(self.path, create=create)
        self._wanted: dict[str, Any] = {"text": text_encoder, "image": image_encoder}
        self._wait_s = wait_s
        self._workers = workers
        self._lock = Lock()
        self._open: dict[tuple[str, str], Any] = {}
        self._searcher: Searcher | None = None

    def __enter__(self) -> Library:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Library({str(self.path)!r})"

    def close(self) -> None:
        """Let go of files and memory. The library cannot be used afterwards."""
        if self._searcher is not None:
            self._searcher.close()
            self._searcher = None
        self._store.close()

    # -- writing ---------------------------------------------------------------------------------------------------

    def add(self, *paths: str | Path, retry: bool = False, progress: ProgressCallback | None = None) -> AddReport:
        """Read files and folders into the library, and remember them for ``sync``.

        Words can be searched while the call runs, from other threads and processes; vectors follow.

        Args:
            retry: Read files again that failed before, even if they have not changed.
            progress: Called as the work goes on; see ``deepwell.library.indexing.Progress``.

        Raises:
            LibraryBusyError: Another process is still writing after ``wait_s``.
        """
        return self._write(lambda indexer: indexer.add(paths, retry=retry), progress)

    def add_texts(
        self,
        texts: Sequence[str],
        ids: Sequence[str] | None = None,
        metadata: Sequence[Mapping[str, str | int | float]] | None = None,
        *,
        progress: ProgressCallback | None = None,
    ) -> AddReport:
        """Add texts that are not files; they are found under the path ``text:ID``.

        Args:
            texts: The texts. A long one is cut into passages.
            ids: One for each text; a text replaces the one of the same id. None takes a hash of the text.
            metadata: Facts about each text, for ``where``.
        """
        return self._write(lambda indexer: indexer.add_texts(texts, ids, metadata), progress)

    def sync(
        self, *, dry_run: bool = False, retry: bool = False, progress: ProgressCallback | None = None
    ) -> AddReport:
        """Bring the library up to date with every file and folder that was added.

        Args:
            dry_run: Say what would be done and do nothing.
            retry: Read files again that failed before, even if they have not changed.
        """
        return self._write(lambda indexer: indexer.sync(dry_run=dry_run, retry=retry), progress, encode=not dry_run)

    def remove(self, *names: str | Path, progress: ProgressCallback | None = None) -> AddReport:
        """Forget files, folders, texts (``text:ID``) or documents (by id). The files themselves stay untouched.

        Raises:
            UsageError: The library holds nothing of that name.
        """
        return self._write(lambda indexer: indexer.remove(names), progress, encode=False)

    def _write(
        self, work: Callable[[Indexer], AddReport], progress: ProgressCallback | None, *, encode: bool = True
    ) -> AddReport:
        from deepwell.library.indexing import Encoders, Indexer, Options, Setup

        notices: list[str] = []
        encoders = Encoders()
        if encode:
            encoders = Encoders(
                text=self._opened("text", notices), image=self._opened("image", notices), labels=self._label_vectors
            )
        options = Options(
            setup=Setup(senses="deepwell.library.senses.local:one_thread"),
            workers=self._workers,
            reader_versions=_reader_versions,
            present=is_present,
            wait_s=self._wait_s,
        )
        report = work(Indexer(self._store, encoders=encoders, options=options, progress=progress))
        if not self._store.image_contents():
            notices = [line for line in notices if _BY_LIKENESS not in line]
        return replace(report, notices=(*report.notices, *notices))

    # -- reading ---------------------------------------------------------------------------------------------------

    def search(
        self,
        query: str | None = None,
        *,
        image: str | Path | None = None,
        audio: str | Path | None = None,
        kinds: Sequence[Kind] | Kind | None = None,
        path: str | None = None,
        since: When | None = None,
        until: When | None = None,
        where: Mapping[str, str] | None = None,
        limit: int = 10,
    ) -> Results:
        """Find passages by words, a picture, a recording, or several of them.

        Args:
            query: Words, in any language the text encoder knows.
            image: A picture file, to find pictures like it.
            audio: A recording, to find what is about what is said in it.
            kinds, path, since, until, where: Which documents may answer; see ``records.Filters``. Times are seconds
                since 1970 or dates, taken as local time where they name no zone.
            limit: At most so many hits, 1 to 1000.

        Raises:
            UsageError: Nothing to search for, or a filter makes no sense.
        """
        asked = Query(
            text=query,
            image=_file(image),
            audio=_file(audio),
            filters=_filters(kinds, path, since, until, where),
            limit=limit,
        )
        return self._search().search(asked)

    def warm(self) -> None:
        """Load encoders and the index of words now, in a process that is about to answer many searches."""
        self._search().warm()

    def ask(
        self,
        question: str,
        *,
        model: str | ChatModel | None = None,
        kinds: Sequence[Kind] | Kind | None = None,
        path: str | None = None,
        since: When | None = None,
        until: When | None = None,
        where: Mapping[str, str] | None = None,
    ) -> Answer:
        """Answer a question from the library, with sources that code has checked word for word.

        Args:
            model: Who writes the answer: ``extractive`` (sentences copied from the library; the default),
                ``openai:MODEL@URL``, the URL of an OpenAI-compatible server, or a ``ChatModel``.
            kinds, path, since, until, where: Which documents may answer, as for ``search``.

        Raises:
            UsageError: The question is empty or the model's name unknown.
            ChatError: The model did not answer.
        """
        from deepwell.library import answers

        return answers.ask(question, **self._asked(model, _filters(kinds, path, since, until, where)))

    def ask_stream(
        self,
        question: str,
        *,
        model: str | ChatModel | None = None,
        draft: bool = False,
        kinds: Sequence[Kind] | Kind | None = None,
        path: str | None = None,
        since: When | None = None,
        until: When | None = None,
        where: Mapping[str, str] | None = None,
    ) -> Iterator[Delta | Answer]:
        """As ``ask``, giving reasoning and text as they come and the ``Answer`` last.

        Args:
            draft: Stream the model's words before they are checked; the answer at the end replaces them.
        """
        from deepwell.library import answers

        asked = self._asked(model, _filters(kinds, path, since, until, where))
        return answers.ask_stream(question, **asked, draft=draft)

    def status(self) -> Status:
        """What the library holds, how far its vectors are, what failed, and who is writing."""
        now = self._store.status()
        notices = [f"{name} is not on this machine; run: {command}" for name, command in self._absent()]
        behind = [space for space in now.spaces if space.active and space.done < space.total]
        notices += [f"{s.total - s.done} {s.space} vectors are still to come; run: deepwell sync" for s in behind]
        return replace(now, notices=(*now.notices, *notices))

    # -- what is handed to the rooms -------------------------------------------------------------------------------

    def _search(self) -> Searcher:
        with self._lock:
            if self._searcher is None:
                from deepwell.library.search import Searcher

                self._searcher = Searcher(
                    self._store,
                    text_encoder=lambda: self._encoder("text", active=True),
                    image_encoder=lambda: self._encoder("image", active=True),
                    senses=self._senses(),
                    labels=self._label_vectors,
                )
            return self._searcher

    def _asked(self, model: str | ChatModel | None, filters: Filters) -> dict[str, Any]:
        from deepwell.library.answers import models_by_name

        encoder: TextEncoder | None = self._opened("text", [], active=True)
        writer = models_by_name(model, encoder=encoder) if model is None or isinstance(model, str) else model
        return {"search": self._search().search, "model": writer, "encoder": encoder, "filters": filters}

    def _senses(self) -> Senses:
        from deepwell.library.senses import LocalSenses

        return LocalSenses()

    def _encoder_name(self, space: str, *, active: bool) -> Any:
        """Which encoder: for a search the one that made the vectors, for writing the one that was asked for."""
        held = self._store.active_encoder(space)
        wanted = self._wanted[space]
        if held is not None and (active or wanted is None):
            # An encoder that was given as an object has no name to open it by.
            if getattr(wanted, "fingerprint", None) == held.fingerprint:
                return wanted
            return held.encoder
        return wanted or (TEXT_ENCODER if space == "text" else IMAGE_ENCODER)

    def _encoder(self, space: str, *, active: bool = False) -> Any:
        """The encoder of a space, loaded once. Raises ``DeepwellError`` when it is not here."""
        name = self._encoder_name(space, active=active)
        if not isinstance(name, str | Path):
            return name
        with self._lock:
            key = (space, os.fspath(name))
            if key not in self._open:
                from deepwell.library import encoders

                opened: Any = encoders.open_text(name) if space == "text" else encoders.open_image(name)
                # Tables remember an encoder by its name, and must be able to open it again.
                opened.name = os.fspath(name)
                self._open[key] = opened
            return self._open[key]

    def _opened(self, space: str, notices: list[str], *, active: bool = False) -> Any:
        try:
            return self._encoder(space, active=active)
        except DeepwellError as error:
            what = "by meaning" if space == "text" else _BY_LIKENESS
            notices.append(f"no search {what}: {error.message}; {error.hint}")
            return None

    def _label_vectors(self, rows: Sequence[Sequence[Label]], encoder: TextEncoder) -> NDArray[np.float32]:
        """Vectors of pictures and sounds in the text encoder's space, from their labels."""
        with self._lock:
            key = ("labels", encoder.fingerprint)
            if key not in self._open:
                from deepwell.library.encoders.conse import Conse

                self._open[key] = Conse.open(encoder)
            conse: Conse = self._open[key]
        return conse.encode_labels(rows)

    def _absent(self) -> list[tuple[str, str]]:
        from deepwell import models

        names = [self._encoder_name(space, active=True) for space in ("text", "image")]
        return [
            (name, f"deepwell models pull {name}")
            for name in names
            if isinstance(name, str) and not name.startswith("openai:") and not models.is_present(name)
        ]


def is_present(name: str) -> bool:
    """Whether a model or a Python package, as ``Document.missing`` names them, is on this machine now."""
    from deepwell import models

    try:
        return models.is_present(name) or importlib.util.find_spec(name.replace("-", "_")) is not None
    except (DeepwellError, ImportError, ValueError):
        return False


def _reader_versions() -> dict[str, int]:
    from deepwell.library.readers import available

    return {reader.name: reader.version for reader in available()}


def _file(path: str | Path | None) -> Path | None:
    return None if path is None else Path(path).expanduser()


def _filters(
    kinds: Sequence[Kind] | Kind | None,
    path: str | None,
    since: When | None,
    until: When | None,
    where: Mapping[str, str] | None,
) -> Filters:
    chosen = (kinds,) if isinstance(kinds, str) else tuple(kinds or ())
    return Filters(
        kinds=tuple(kind for kind in KINDS if kind in chosen) if set(chosen) <= set(KINDS) else chosen,
        path=path,
        since=_seconds(since),
        until=_seconds(until),
        where={key: str(value) for key, value in (where or {}).items()},
    )


def _seconds(when: When | None) -> float | None:
    if when is None or isinstance(when, int | float):
        return when
    if not isinstance(when, dt.datetime):
        when = dt.datetime.combine(when, dt.time())
    return when.timestamp()
