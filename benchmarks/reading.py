"""How much of the words in a file reaches its passages, and how well passages keep to their size.

    python benchmarks/reading.py

Prints three tables: word recall of PDFs with a text layer, against the text of the same document; word recall of OCR on
scanned pages, against their transcripts (where OCR is installed); and the token estimate of the passage cutter against
the tokenizer of all-MiniLM-L6-v2 (where that model is on this machine).

Recall counts words as multisets, letter case aside: a word that stands twice in the reference must be found twice.
"""

import gzip
import re
import time
from collections import Counter
from pathlib import Path

from deepwell.errors import DeepwellError
from deepwell.library.protocols import Senses
from deepwell.library.readers import choose
from deepwell.library.readers.passages import MAX_TOKENS, MIN_TOKENS, Block, cut
from deepwell.library.readers.tokens import estimate_tokens
from deepwell.library.records import Document
from deepwell.paths import default_data, models_folder
from deepwell.testing import FakeSenses


def words(text: str) -> Counter[str]:
    return Counter(re.findall(r"\w+", text.lower()))


def recall(reference: str, found: str) -> float:
    wanted = words(reference)
    return (wanted & words(found)).total() / max(1, wanted.total())


def text_of(document: Document) -> str:
    return " ".join(passage.text for passage in document.passages)


def pdfs(data: Path) -> None:
    print("\nPDF: word recall against the same document as text")
    folder = data / "documents" / "pdf"
    for reference in sorted(folder.glob("*.txt.gz")):
        path = folder / reference.name.replace(".txt.gz", ".pdf")
        started = time.perf_counter()
        document = choose(path).read(path, FakeSenses())
        took = time.perf_counter() - started
        with gzip.open(reference, "rt", encoding="utf-8") as file:
            share = recall(file.read(), text_of(document))
        pages = int(document.metadata["pages"])
        found = f"{pages} pages, {len(document.passages)} passages, {pages / took:.0f} pages/s"
        print(f"  {path.name:40} {share:.4f}  {found}")


def scans(data: Path, senses: Senses) -> None:
    print("\nOCR: word recall on scanned pages against their transcripts")
    shares = []
    for reference in sorted((data / "documents" / "scans").glob("*.txt")):
        pictures = (reference.with_suffix(suffix) for suffix in (".tif", ".png"))
        path = next((picture for picture in pictures if picture.exists()), None)
        if path is None:
            continue
        document = choose(path).read(path, senses)
        if document.missing:
            print(f"  not measured: {', '.join(document.missing)} is not here")
            return
        spoken = " ".join(passage.text for passage in document.passages if passage.modality == "text")
        shares.append(recall(reference.read_text(encoding="utf-8"), spoken))
        print(f"  {path.name:40} {shares[-1]:.4f}")
    print(f"  {'mean':40} {sum(shares) / max(1, len(shares)):.4f}")


def sizes(data: Path) -> None:
    print("\nPassage sizes in tokens of all-MiniLM-L6-v2")
    vocabulary = next(models_folder().glob("all-minilm-l6-v2/**/tokenizer.json"), None)
    if vocabulary is None:
        print("  not measured: run deepwell models pull all-minilm-l6-v2")
        return
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(vocabulary))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    samples = {path.name: path.read_text(encoding="utf-8")[:300_000] for path in sorted((data / "text").glob("*.txt"))}
    samples["this package's code"] = "".join(
        path.read_text(encoding="utf-8") for path in sorted(Path(__file__).parents[1].glob("src/**/*.py"))
    )[:300_000]
    for name, text in samples.items():
        passages = cut([Block(text, role="lines" if "code" in name else "prose")])
        counts = [len(tokenizer.encode(passage.text, add_special_tokens=False).ids) for passage in passages]
        ratio = sum(estimate_tokens(passage.text) for passage in passages) / sum(counts)
        within = sum(MIN_TOKENS <= count <= MAX_TOKENS for count in counts) / len(counts)
        span = f"within {MIN_TOKENS}-{MAX_TOKENS}: {within:.1%}"
        print(f"  {name:40} estimate/true {ratio:.3f}  {span}  most {max(counts)}")


def main() -> None:
    data = default_data()
    if data is None:
        print("not measured: no benchmark data here; set DEEPWELL_DATA")
        return
    pdfs(data)
    try:
        from deepwell.library.senses import LocalSenses

        scans(data, LocalSenses())
    except (DeepwellError, ImportError) as error:
        print(f"  not measured: {error}")
    sizes(data)


if __name__ == "__main__":
    main()
