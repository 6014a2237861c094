"""How well pictures, scans, speech and sounds are perceived, each beside a named peer where there is one.

    python benchmarks/senses.py [pictures] [mixed] [ocr] [speech] [sounds] [--library FOLDER]

- pictures: text to image on 500 photographs with 5 captions each: the share of captions whose own photograph is among
  the first 1, 5, 10 of all 500. Settings were chosen with the captions of every other photograph (even); the figures
  to quote are those of the other half (odd). ConSE as in its paper (ten bare names weighted by probability) is the
  peer; the last line is what ``Library.search`` returns. Reading the photographs into a library takes minutes the first
  time; ``--library`` keeps it.
- mixed: the same library with the 1,400 Cranfield abstracts beside the photographs: captions must still find pictures
  and questions about aerodynamics must not.
- ocr: recall and precision of words on scanned pages whose text is known; the peer is rapidocr called plainly.
- speech: word error rate; the peer is faster-whisper called plainly with the same weights.
- sounds: share of 240 recordings of 10 kinds whose best tag is of the right kind, by a map from AudioSet's names.

Needs the data sets (``DEEPWELL_DATA``) and models; what is absent is said and left out, and the exit status is 0.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import deepwell
from deepwell import models
from deepwell.errors import DeepwellError
from deepwell.library.encoders import open_text
from deepwell.library.encoders.conse import Conse
from deepwell.library.protocols import TextEncoder
from deepwell.library.records import Label
from deepwell.library.senses import LocalSenses
from deepwell.paths import default_data

SPOKEN = {
    "jfk.flac": "and so my fellow americans ask not what your country can do for you ask what you can do for your "
    "country",
    "sense_and_sensibility_01_austen_64kb-0870.wav": "and mister john dashwood had then leisure to consider how much "
    "there might be prudently in his power to do for them",
    "sense_and_sensibility_01_austen_64kb-0880.wav": "he was not an ill disposed young man",
    "sense_and_sensibility_01_austen_64kb-0890.wav": "unless to be rather cold hearted and rather selfish is to be ill "
    "disposed",
    "sense_and_sensibility_01_austen_64kb-0920.wav": "had he married a more amiable woman he might have been made "
    "still more respectable than he was",
    "sense_and_sensibility_01_austen_64kb-0930.wav": "he might even have been made amiable himself",
}
_LETTERS = "zero one two three four five six seven eight nine ten mister"
NUMBERS = dict(zip("0 1 2 3 4 5 6 7 8 9 10 mr".split(), _LETTERS.split(), strict=True))

SCANS = {  # a page and the file that holds its text
    "phototest.tif": "phototest.gold.txt",
    "phototestrot.tif": "phototest.gold.txt",
    "phototest-rotated-180.png": "phototest.gold.txt",
    "phototest-rotated-L.png": "phototest.gold.txt",
    "phototest-rotated-R.png": "phototest.gold.txt",
    "eurotext.tif": "eurotext.txt",
    "8071_093.3B.tif": "8071_093.3B.txt",
    "8087_054.3B.tif": "8087_054.3B.txt",
}

_NUMBERS = "12 136 256 324 410 432 433 540 692 779 793 808 815".split()
SHORT = {  # pictures of a few words: house numbers, a line on a large blank page
    **{f"{number}.tif": number for number in _NUMBERS},
    "HelloGoogle.tif": "hello google",
    "deslant.tif": "test deslant correction",
    **{
        f"training{name}.tif": "to simple burn running of goods lately"
        for name in "times timesline ital italline".split()
    },
}

KINDS = {
    "baby_cry": {"Baby cry, infant cry", "Crying, sobbing", "Whimper", "Baby laughter", "Child speech, kid speaking"},
    "chainsaw": {
        "Chainsaw",
        "Light engine (high frequency)",
        "Power tool",
        "Lawn mower",
        "Engine",
        "Motorcycle",
        "Tools",
    },
    "clock_tick": {"Tick", "Tick-tock", "Clock", "Mechanisms", "Ratchet, pawl", "Clicking"},
    "dog_bark": {"Dog", "Bark", "Bow-wow", "Domestic animals, pets", "Growling", "Yip", "Howl"},
    "fire_crackling": {"Fire", "Crackle"},
    "helicopter": {"Helicopter", "Aircraft", "Propeller, airscrew", "Aircraft engine"},
    "person_sneeze": {"Sneeze", "Cough", "Sniff"},
    "rain": {"Rain", "Raindrop", "Rain on surface", "Water", "Stream"},
    "rooster": {"Chicken, rooster", "Crowing, cock-a-doodle-doo", "Fowl", "Livestock, farm animals, working animals"},
    "sea_waves": {"Waves, surf", "Ocean", "Wind noise (microphone)", "Wind"},
}


def words_of(text: str) -> list[str]:
    """Words to compare: lower case, numbers in letters, hyphens as spaces."""
    return [NUMBERS.get(word, word) for word in re.findall(r"[^\W_]+(?:'\w+)?", text.lower().replace("-", " "))]


# ------------------------------------------------------------------------------------------------------------ pictures


@dataclass(frozen=True)
class Photographs:
    """Photographs and their captions; ``own`` is the photograph of each caption."""

    names: list[str]
    captions: list[str]
    own: NDArray[np.int64]

    @classmethod
    def load(cls, data: Path) -> Photographs:
        """The 500 photographs with 5 captions each."""
        rows = [json.loads(line) for line in (data / "images/flickr_captions.jsonl").read_text().splitlines()]
        captions = [caption for row in rows for caption in row["captions"]]
        return cls(
            [row["image"] for row in rows], captions, np.array([i for i, r in enumerate(rows) for _ in r["captions"]])
        )

    @property
    def held_out(self) -> NDArray[np.bool_]:
        """Captions of every second photograph, none of which was looked at to choose a setting."""
        return self.own % 2 == 1


def filled(data: Path, folder: Path) -> deepwell.Library:
    """A library of the photographs."""
    library = deepwell.Library(folder)
    report = library.add(data / "images/flickr")
    if report.added:
        print(f"\nread {report.added} photographs into a library in {report.took_s:.0f} s")
    for notice in report.notices:
        print(f"  {notice}")
    return library


def pictures(data: Path, folder: Path) -> None:
    """Text to image, by meaning (ConSE), by words (BM25 over labels and OCR), and by the library's own search."""
    photographs = Photographs.load(data)
    images = data / "images/flickr"
    encoder = open_text("all-minilm-l6-v2")
    with filled(data, folder) as library:
        store = library._store
        passages = {p.path: p for p in store.passages(store.wanted("image"))}
        rows = [passages[str(images / name)] for name in photographs.names]
        labels, texts = [row.labels for row in rows], [row.text for row in rows]
        shown = [text.partition("“")[0] for text in texts]
        queries = encoder.encode(photographs.captions, query=True)
        table = {
            "ConSE as in its paper (peer)": queries @ paper_conse(encoder, labels).T,
            "ConSE": queries @ Conse.open(encoder).encode_labels(labels).T,
        }
        for name, words in (("words of labels (BM25)", shown), ("words of labels and OCR (BM25)", texts)):
            if (scores := bm25(photographs.captions, words)) is not None:
                table[name] = scores
        began = time.perf_counter()
        table["Library.search (fused)"] = searched(library, photographs, images)
        took = (time.perf_counter() - began) / len(photographs.captions)
    print(f"\npictures: {len(rows)} photographs, {sum('“' in text for text in texts)} of them with words on them, "
          f"{took * 1000:.0f} ms a search")  # fmt: skip
    print(f"  {'':34} chosen on (even)      held out (odd)")
    print(f"  {'':34}   R@1   R@5  R@10     R@1   R@5  R@10")
    for name, scores in table.items():
        halves = [
            " ".join(f"{recall(scores[half], photographs.own[half], k):5.3f}" for k in (1, 5, 10))
            for half in (~photographs.held_out, photographs.held_out)
        ]
        print(f"  {name:34} {halves[0]}   {halves[1]}")


def searched(library: deepwell.Library, photographs: Photographs, images: Path) -> NDArray[np.float32]:
    """The library's first ten pictures for each caption as scores [captions, photographs], 10 down to 1."""
    number = {str(images / name): i for i, name in enumerate(photographs.names)}
    scores = np.zeros((len(photographs.captions), len(photographs.names)), dtype=np.float32)
    library.warm()
    for row, caption in zip(scores, photographs.captions, strict=True):
        found = dict.fromkeys(hit.path for hit in library.search(caption, kinds="image", limit=20))
        for rank, path in enumerate(list(found)[:10]):
            row[number[path]] = 10 - rank
    own = np.arange(len(scores)), photographs.own
    scores[own] = np.where(scores[own] == 0, -1.0, scores[own])  # not found: behind all others
    return scores


def mixed(data: Path, folder: Path) -> None:
    """How many of the first ten hits are pictures, for captions and for questions about something else."""
    photographs = Photographs.load(data)
    images = data / "images/flickr"
    cranfield = data / "ir/cranfield"
    texts = [json.loads(line) for line in (cranfield / "docs.jsonl").read_text().splitlines()]
    questions = {row["id"]: row["text"] for row in map(json.loads, (cranfield / "queries.jsonl").open())}
    grades: dict[str, dict[str, float]] = {}
    for line in (cranfield / "qrels.tsv").read_text().splitlines():
        question, text, grade = line.split("\t")
        if float(grade) > 0:
            grades.setdefault(question, {})[f"text:{text}"] = float(grade)
    chosen = np.flatnonzero(photographs.held_out)[::5]  # one caption of each photograph of the held-out half
    with filled(data, folder) as library:
        if not any(hit.kind == "text" for hit in library.search("boundary layer", limit=5)):
            kept = [row for row in texts if row["text"].strip() or row["title"].strip()]
            library.add_texts(
                [f"{row['title']}\n\n{row['text']}" for row in kept], ids=[str(row["id"]) for row in kept]
            )
        library.warm()
        shares, found = Counter[str](), Counter[str]()
        for i in chosen:
            hits = library.search(photographs.captions[i], limit=10)
            path = str(images / photographs.names[photographs.own[i]])
            shares["captions"] += sum(hit.kind == "image" for hit in hits)
            shares["captions first"] += bool(hits) and hits[0].kind == "image"
            found["mixed"] += path in [hit.path for hit in hits]
            found["alone"] += path in [hit.path for hit in library.search(photographs.captions[i], kinds="image")]
        gains = Counter[str]()
        for name, question in questions.items():
            wanted = grades.get(str(name), {})
            hits = library.search(question, limit=10)
            shares["questions"] += sum(hit.kind == "image" for hit in hits)
            gains["mixed"] += ndcg([hit.path for hit in hits], wanted)
            gains["alone"] += ndcg([hit.path for hit in library.search(question, kinds="text")], wanted)
    print(f"\nmixed: {len(texts)} abstracts and {len(photographs.names)} photographs")
    print(f"  {len(chosen)} held-out captions: pictures are {shares['captions'] / len(chosen) / 10:.3f} of the first "
          f"ten hits and {shares['captions first'] / len(chosen):.3f} of the first; own photograph among ten: "
          f"{found['mixed'] / len(chosen):.3f} (among pictures only: {found['alone'] / len(chosen):.3f})")  # fmt: skip
    print(f"  {len(questions)} Cranfield questions: pictures are {shares['questions'] / len(questions) / 10:.3f} of "
          f"the first ten hits; nDCG@10 {gains['mixed'] / len(questions):.3f} (among texts only: "
          f"{gains['alone'] / len(questions):.3f})")  # fmt: skip


def ndcg(found: Sequence[str], wanted: Mapping[str, float]) -> float:
    """Discounted gain of the first ten against the best possible."""
    gain = sum(wanted.get(name, 0.0) / np.log2(rank + 2) for rank, name in enumerate(dict.fromkeys(found)))
    best = sum(grade / np.log2(rank + 2) for rank, grade in enumerate(sorted(wanted.values(), reverse=True)[:10]))
    return float(gain / best) if best else 0.0


def paper_conse(encoder: TextEncoder, labels: Sequence[Sequence[Label]]) -> NDArray[np.float32]:
    """ConSE as published: ten names as they stand, weighted by probability."""
    names = sorted({label.name for row in labels for label in row})
    vectors = dict(zip(names, encoder.encode(names), strict=True))
    rows = np.stack([sum(label.score * vectors[label.name] for label in row[:10]) for row in labels])
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def recall(scores: NDArray[np.float32], own: NDArray[np.int64], k: int) -> float:
    """Share of queries whose own row is among the first k; ties are shared out fairly."""
    mine = scores[np.arange(len(own)), own][:, None]
    better, equal = (scores > mine).sum(axis=1), (scores == mine).sum(axis=1)
    return float(np.clip((k - better) / equal, 0, 1).mean())


def min_max(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """Each row to 0..1."""
    low, high = scores.min(axis=1, keepdims=True), scores.max(axis=1, keepdims=True)
    scaled: NDArray[np.float32] = (scores - low) / np.maximum(high - low, 1e-9)
    return scaled


def bm25(queries: Sequence[str], texts: Sequence[str]) -> NDArray[np.float32] | None:
    """Scores [queries, texts], or None where bm25s is not installed."""
    try:
        import bm25s
        import Stemmer
    except ImportError:
        print("  bm25s or PyStemmer is not installed: no words")
        return None
    stemmer = Stemmer.Stemmer("english")

    def tokens(batch: Sequence[str]) -> list[list[str]]:
        found = bm25s.tokenize(list(batch), stopwords="en", stemmer=stemmer, return_ids=False, show_progress=False)
        return [list(row) for row in found]

    index = bm25s.BM25()
    index.index(tokens(texts), show_progress=False)
    known = set(index.vocab_dict)
    none = np.zeros(len(texts), dtype=np.float32)
    kept = [[token for token in row if token in known] for row in tokens(queries)]
    return np.stack([index.get_scores(row) if row else none for row in kept])


# ------------------------------------------------------------------------------------------------------- ocr and speech


def ocr(data: Path, senses: LocalSenses) -> None:
    """Words of scanned pages, then of pictures of a few words."""
    folder = data / "documents/scans"
    print(f"\nocr: {'':34} recall precision   peer's   seconds")
    pages = {name: (folder / text).read_text(encoding="utf-8", errors="replace") for name, text in SCANS.items()}
    for heading, known in (("all words of the pages", pages), ("all words of the short ones", SHORT)):
        total: Counter[str] = Counter()
        for name, text in known.items():
            one = compared(folder / name, text, senses)
            total += one
            perfect = one["both"] == one["truth"] == one["found"]
            if known is pages or not perfect:  # of the short ones, those that fail
                print(f"  {name:36} {shares(one)} {one['ms'] / 1000:9.1f}")
        print(f"  {heading:36} {shares(total)}  ({len(known)} pictures)")


def compared(path: Path, text: str, senses: LocalSenses) -> Counter[str]:
    """Words in truth, found, in both, and in both for the peer; milliseconds."""
    from PIL import Image

    truth = Counter(words_of(text))
    with Image.open(path) as image:
        began = time.perf_counter()
        found = Counter(words_of(" ".join(line.text for line in senses.ocr(image))))
        took = time.perf_counter() - began
        plain = Counter(words_of(plain_rapidocr(image)))
    both, peer = (truth & found).total(), (truth & plain).total()
    return Counter(truth=truth.total(), found=found.total(), both=both, peer=peer, ms=round(took * 1000))


def shares(words: Counter[str]) -> str:
    """Recall, precision and the peer's recall."""
    recall_, precision = words["both"] / words["truth"], words["both"] / max(1, words["found"])
    return f"{recall_:6.3f} {precision:9.3f} {words['peer'] / words['truth']:8.3f}"


def plain_rapidocr(image: object) -> str:
    """What rapidocr reads when called as its documentation says."""
    from rapidocr import RapidOCR

    engine = plain_rapidocr.__dict__.setdefault("engine", RapidOCR(params={"Global.log_level": "critical"}))
    found = engine(np.asarray(image.convert("RGB"))[:, :, ::-1])  # type: ignore[attr-defined]
    return " ".join(found.txts or ())


def speech(data: Path, senses: LocalSenses) -> None:
    """Word error rate."""
    from faster_whisper import WhisperModel

    folder = data / "audio/speech"
    told = dict(SPOKEN)
    for line in (folder / "cards.transcription").read_text().splitlines():
        if found := re.match(r"<s>(.*)</s>\s*\((\w+)\)", line):
            told[f"{found[2]}.wav"] = found[1]
    plain = WhisperModel(str(models.folder("whisper-tiny")), device="cpu", compute_type="int8", local_files_only=True)
    print(f"\nspeech: {'':44} words errors  peer's")
    sums: Counter[str] = Counter()
    took = heard_seconds = 0.0
    for name, text in sorted(told.items()):
        began = time.perf_counter()
        transcript = senses.transcribe(folder / name)
        took += time.perf_counter() - began
        heard_seconds += transcript.duration
        heard = words_of(" ".join(utterance.text for utterance in transcript.utterances))
        peer = words_of(" ".join(segment.text for segment in plain.transcribe(str(folder / name))[0]))
        truth = words_of(text)
        errors, theirs = edits(truth, heard), edits(truth, peer)
        group = "cards" if name[0] == "0" else "sentences"
        sums.update({f"{group} words": len(truth), f"{group} errors": errors, f"{group} peer": theirs})
        print(f"  {name:50} {len(truth):5} {errors:6} {theirs:7}")
    for group in ("sentences", "cards"):
        words = sums[f"{group} words"]
        print(
            f"  {group:50} word error {sums[f'{group} errors'] / words:.3f}, peer {sums[f'{group} peer'] / words:.3f}"
        )
    print(f"  {heard_seconds:.0f} seconds of sound in {took:.1f}")


def edits(truth: Sequence[str], heard: Sequence[str]) -> int:
    """Words to insert, delete or replace (Levenshtein)."""
    row = list(range(len(heard) + 1))
    for i, word in enumerate(truth, start=1):
        before, row[0] = row[0], i
        for j, other in enumerate(heard, start=1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (word != other))
    return row[-1]


# -------------------------------------------------------------------------------------------------------------- sounds


def sounds(data: Path, senses: LocalSenses) -> None:
    """Kinds of environmental sound."""
    if not models.is_present("yamnet") and (data / "models/yamnet").is_dir():
        senses = LocalSenses(model_folder=lambda name: data / "models" / name)
    files = sorted((data / "audio/esc10").glob("*.ogg"))
    kinds = sorted({path.name.split("-")[0] for path in files})
    right = {1: Counter[str](), 3: Counter[str]()}
    began = time.perf_counter()
    for path in files:
        kind = path.name.split("-")[0]
        heard: Counter[str] = Counter()
        for tag in senses.sounds(path):
            for label in tag.labels:
                heard[label.name] += label.score * (tag.end - tag.start)
        votes = {k: sum(heard[name] for name in KINDS.get(k, {k.replace("_", " ").capitalize()})) for k in kinds}
        ranked = sorted(kinds, key=lambda k: -votes[k])
        for depth, count in right.items():
            count[kind] += kind in ranked[:depth] and votes[kind] > 0
    rate = len(files) * 5 / (time.perf_counter() - began)
    print(f"\nsounds: {len(files)} recordings, {rate:.0f} seconds of sound a second")
    for kind in kinds:
        print(f"  {kind:20} {right[1][kind]} of {sum(path.name.startswith(kind + '-') for path in files)}")
    print(f"  first {right[1].total() / len(files):.3f}, among the first three {right[3].total() / len(files):.3f}")


def parts(arguments: argparse.Namespace, data: Path, folder: Path) -> Iterator[tuple[str, Callable[[], None]]]:
    """The parts asked for, all of them by default."""
    senses = LocalSenses()
    every: dict[str, Callable[[], None]] = {
        "pictures": lambda: pictures(data, folder),
        "mixed": lambda: mixed(data, folder),
        "ocr": lambda: ocr(data, senses),
        "speech": lambda: speech(data, senses),
        "sounds": lambda: sounds(data, senses),
    }
    yield from ((name, every[name]) for name in arguments.parts or every)


def main() -> int:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("parts", nargs="*", choices=["pictures", "mixed", "ocr", "speech", "sounds"])
    parser.add_argument("--library", type=Path, help="keep the library of the photographs in this folder")
    arguments = parser.parse_args()
    data = default_data()
    if data is None:
        print("senses: no data sets here; set DEEPWELL_DATA. Nothing was measured.")
        return 0
    print(f"{date.today()}, {platform.platform()}")
    with tempfile.TemporaryDirectory(prefix="senses") as scratch:
        for name, measure in parts(arguments, data, arguments.library or Path(scratch) / "library"):
            try:
                measure()
            except (DeepwellError, FileNotFoundError, ImportError) as error:
                print(f"\n{name}: left out: {error}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
