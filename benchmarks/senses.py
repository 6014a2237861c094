"""How well pictures, scans, speech and sounds are perceived, each beside a named peer where there is one.

    python benchmarks/senses.py [pictures] [ocr] [speech] [sounds] [--read-text] [--photos N]

- pictures: text to image on 500 photographs with 5 captions each: the share of captions whose own photograph is among
  the first 1, 5, 10. ConSE as in its paper (ten bare names weighted by probability) is the peer. ``--read-text`` adds
  the words of OCR to those of the labels; it takes some seconds a photograph.
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
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deepwell import models
from deepwell.errors import DeepwellError
from deepwell.library.encoders import open_text
from deepwell.library.encoders.conse import Conse
from deepwell.library.protocols import TextEncoder
from deepwell.library.records import Label
from deepwell.library.senses import LocalSenses
from deepwell.library.senses.pictures import load_rgb
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


def pictures(data: Path, senses: LocalSenses, *, read_text: bool, limit: int | None) -> None:
    """Text to image, by meaning (ConSE), by words (BM25 over labels and OCR), and both."""
    rows = [json.loads(line) for line in (data / "images/flickr_captions.jsonl").read_text().splitlines()][:limit]
    captions = [caption for row in rows for caption in row["captions"]]
    own = np.array([i for i, row in enumerate(rows) for _ in row["captions"]])
    encoder = open_text("all-minilm-l6-v2")
    classifier = senses.classifier()
    began = time.perf_counter()
    images = [load_rgb(data / "images/flickr" / row["image"]) for row in rows]
    probabilities, _ = classifier.look(images)
    labels = classifier.label_rows(probabilities)
    print(f"\npictures: {len(rows)} photographs, {len(captions)} captions, labelled at "
          f"{len(rows) / (time.perf_counter() - began):.1f} a second")  # fmt: skip
    queries = encoder.encode(captions, query=True)
    shown = [", ".join(label.name for label in row[:6] if label.score >= 0.02) for row in labels]
    meaning = queries @ Conse.open(encoder).encode_labels(labels).T
    paper = queries @ paper_conse(encoder, labels).T
    table: dict[str, NDArray[np.float32]] = {"ConSE as in its paper (peer)": paper, "ConSE": meaning}
    by_words = bm25(captions, shown)
    if by_words is not None:
        table["words of labels (BM25)"] = by_words
        if read_text:
            began = time.perf_counter()
            texts = [" ".join(line.text for line in senses.ocr(image)) for image in images]
            print(
                f"  OCR found text in {sum(map(bool, texts))}, {(time.perf_counter() - began) / len(rows):.2f} s each"
            )
            by_words = bm25(captions, [f"{a} {b}" for a, b in zip(shown, texts, strict=True)])
            assert by_words is not None
            table["words of labels and OCR (BM25)"] = by_words
        table["fused, half and half"] = 0.5 * min_max(meaning) + 0.5 * min_max(by_words)
        table["fused, three to one for meaning"] = 0.75 * min_max(meaning) + 0.25 * min_max(by_words)
    print(f"  {'':34}   R@1   R@5  R@10")
    for name, scores in table.items():
        print(f"  {name:34} " + " ".join(f"{recall(scores, own, k):5.3f}" for k in (1, 5, 10)))


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
    """Words of scanned pages."""
    from PIL import Image

    folder = data / "documents/scans"
    print(f"\nocr: {'':34} recall precision   peer's   seconds")
    total: Counter[str] = Counter()
    for name, reference in SCANS.items():
        truth = Counter(words_of((folder / reference).read_text(encoding="utf-8", errors="replace")))
        with Image.open(folder / name) as image:
            began = time.perf_counter()
            found = Counter(words_of(" ".join(line.text for line in senses.ocr(image))))
            took = time.perf_counter() - began
            plain = Counter(words_of(plain_rapidocr(image)))
        both, peer = (truth & found).total(), (truth & plain).total()
        total.update(truth=truth.total(), both=both, found=found.total(), peer=peer)
        shares = both / truth.total(), both / max(1, found.total()), peer / truth.total()
        print(f"  {name:36} {shares[0]:6.3f} {shares[1]:9.3f} {shares[2]:8.3f} {took:9.1f}")
    print(f"  {'all words':36} {total['both'] / total['truth']:6.3f} {total['both'] / total['found']:9.3f} "
          f"{total['peer'] / total['truth']:8.3f}")  # fmt: skip


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


def parts(arguments: argparse.Namespace, data: Path) -> Iterator[tuple[str, Callable[[], None]]]:
    """The parts asked for, all of them by default."""
    senses = LocalSenses()
    every: dict[str, Callable[[], None]] = {
        "pictures": lambda: pictures(data, senses, read_text=arguments.read_text, limit=arguments.photos),
        "ocr": lambda: ocr(data, senses),
        "speech": lambda: speech(data, senses),
        "sounds": lambda: sounds(data, senses),
    }
    yield from ((name, every[name]) for name in arguments.parts or every)


def main() -> int:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("parts", nargs="*", choices=["pictures", "ocr", "speech", "sounds"])
    parser.add_argument("--read-text", action="store_true", help="also read the text in the photographs")
    parser.add_argument("--photos", type=int, help="only the first N photographs")
    arguments = parser.parse_args()
    data = default_data()
    if data is None:
        print("senses: no data sets here; set DEEPWELL_DATA. Nothing was measured.")
        return 0
    print(f"{date.today()}, {platform.platform()}")
    for name, measure in parts(arguments, data):
        try:
            measure()
        except (DeepwellError, FileNotFoundError, ImportError) as error:
            print(f"\n{name}: left out: {error}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
