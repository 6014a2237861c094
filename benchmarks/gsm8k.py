"""What fine-tuning gains: SmolLM2-135M-instruct on GSM8K's word problems, before and after a LoRA adapter.

    python benchmarks/gsm8k.py [--limit 200] [--to out/gsm8k] [--precision int8] [--set batch.tokens=400_000 ...]

A tenth of the 7,473 problems, chosen by a hash of the question, is held back: never trained on, and all that is asked
here. The published solutions' calculator marks (``<<48/2=24>>``) are taken out, from what is learned and from examples.

- **before**: the model as it comes, in its own chat template, told to reason and to end with ``#### answer``;
- **before, examples**: the same with three solved problems (of those that are trained on) as earlier turns of the chat,
  so that not knowing the form costs it nothing;
- **after**: the recipe ``sft-smollm2``, with no word but the question, as it was trained.

All three go through Deepwell's engine in the same precision, greedily, and are read by the same rule: the number behind
the last ``####``, or else the last number of the reply. A reply counts if the number is that of the solution.

Problems that were asked are kept in ``--to``, one line each, and not asked again, and the training goes on from its
checkpoint; so a stopped benchmark is simply started once more.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deepwell.paths import default_data

MODEL = "smollm2-135m-instruct"
RECIPE = "sft-smollm2"
INSTRUCTION = (
    "Solve the problem step by step. "
    "Write the final answer as a number on the last line, after ####, like this: #### 42"
)
EXAMPLES = 3
AT_ONCE = 32
"""Prompts that are written at the same time."""

Problem = dict[str, str]
Messages = list[dict[str, str]]


def problems(path: Path) -> tuple[list[Problem], list[Problem]]:
    """Those to train on, and the tenth that is held back."""
    learned: list[Problem] = []
    held_back: list[Problem] = []
    with path.open(encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            one = {"question": row["question"], "answer": re.sub(r"<<[^>]*>>", "", row["answer"])}
            digest = hashlib.sha256(one["question"].encode()).digest()
            (held_back if int.from_bytes(digest[:4], "big") % 10 == 0 else learned).append(one)
    return learned, held_back


def answer_in(text: str) -> float | None:
    """The number behind the last ``####``, or else the last number; None where there is none."""
    marked = text.rsplit("####", 1)[-1] if "####" in text else text
    numbers = re.findall(r"-?\$?\d[\d,]*(?:\.\d+)?|-?\$?\.\d+", marked)
    if not numbers:
        return None
    number = numbers[0] if "####" in text else numbers[-1]
    return float(number.replace("$", "").replace(",", ""))


def is_right(reply: str, solution: str) -> bool:
    """Whether a reply ends in the solution's number."""
    said, wanted = answer_in(reply), answer_in(solution)
    return said is not None and wanted is not None and abs(said - wanted) < 1e-4


def chat(question: str, way: str, learned: Sequence[Problem]) -> Messages:
    """What the model is shown. ``way``: before, examples or after."""
    if way == "after":
        return [{"role": "user", "content": question}]
    messages: Messages = [{"role": "system", "content": INSTRUCTION}]
    for example in learned[:EXAMPLES] if way == "examples" else ():
        messages.append({"role": "user", "content": example["question"]})
        messages.append({"role": "assistant", "content": example["answer"]})
    return [*messages, {"role": "user", "content": question}]


def ask(
    model: str | Path, way: str, held_back: Sequence[Problem], learned: Sequence[Problem], folder: Path, precision: str
) -> list[dict[str, Any]]:
    """Every held-back problem's reply, those of earlier sittings from the file."""
    path = folder / f"replies-{way}-{precision}.jsonl"
    kept: dict[str, dict[str, Any]] = {}
    if path.exists():
        whole = path.read_text(encoding="utf-8").rpartition("\n")[0]
        kept = {row["question"]: row for row in map(json.loads, filter(None, whole.splitlines()))}
    missing = [problem for problem in held_back if problem["question"] not in kept]
    if missing:
        from deepwell.lm import Model, SamplingParams

        engine = Model.load(model, precision=precision, device="cpu")
        params = SamplingParams(temperature=0, max_tokens=256)
        with path.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in kept.values())
            for first in range(0, len(missing), AT_ONCE):
                part = missing[first : first + AT_ONCE]
                begun = time.perf_counter()
                requests = [engine.begin(chat(one["question"], way, learned), params) for one in part]
                replies = [request.result() for request in requests]
                seconds = time.perf_counter() - begun
                for one, reply in zip(part, replies, strict=True):
                    row = {**one, "reply": reply.text, "right": is_right(reply.text, one["answer"])}
                    kept[one["question"]] = row
                    file.write(json.dumps(row) + "\n")
                file.flush()
                right = sum(row["right"] for row in kept.values())
                print(f"  {way}: {right} of {len(kept)} right; {seconds:.0f} s for {len(part)}", file=sys.stderr)
    return [kept[problem["question"]] for problem in held_back]


def tuned(folder: Path, sets: Sequence[str]) -> tuple[Path, dict[str, Any]]:
    """Train, go on, or find it done: the model's folder, and what the training took."""
    from deepwell.lm.training import journal
    from deepwell.lm.training.reading import read
    from deepwell.lm.training.records import Ended, Stepped, Validated

    path = folder / "journal.jsonl"
    found = read(RECIPE, sets)
    if not (folder / "model").exists():
        from deepwell.lm.training.run import train

        begun = folder.exists() and any(folder.iterdir())

        def tell(record: object) -> None:
            if isinstance(record, Stepped) and record.step % 10 == 0:
                print(
                    f"  step {record.step}: loss {record.loss:.3f}, {record.tokens_per_second:,.0f} tokens/s",
                    file=sys.stderr,
                )

        train(found.recipe, folder, base=found.base, name="gsm8k", resume=begun, watchers=[tell])
    records = journal.timeline(journal.read(path))
    steps = [record for record in records if isinstance(record, Stepped)]
    looks = [record for record in records if isinstance(record, Validated)]
    ended = [record for record in records if isinstance(record, Ended)]
    facts = {
        "steps": steps[-1].step,
        "tokens": steps[-1].tokens,
        "minutes": ended[-1].seconds / 60 if ended else None,
        "loss": steps[-1].loss,
        "validation_loss": looks[-1].loss if looks else None,
        "changes": list(sets),
    }
    return folder / "model", facts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--to", type=Path, default=Path("out/gsm8k"))
    parser.add_argument("--limit", type=int, default=0, help="ask so many held-back problems; 0: all")
    parser.add_argument("--precision", default="int8", help="of the engine, for all three")
    parser.add_argument("--ways", default="before,examples,after")
    parser.add_argument("--set", action="append", default=[], dest="sets", metavar="KEY=VALUE", help="of the recipe")
    arguments = parser.parse_args()
    data = default_data()
    source = data / "math" / "gsm8k_train.jsonl" if data else None
    if source is None or not source.exists():
        print("no math/gsm8k_train.jsonl: set DEEPWELL_DATA")
        return
    folder: Path = arguments.to
    folder.mkdir(parents=True, exist_ok=True)
    learned, held_back = problems(source)
    (folder / "train.jsonl").write_text("".join(json.dumps(one) + "\n" for one in learned), encoding="utf-8")
    asked = held_back[: arguments.limit or None]
    found: dict[str, Any] = {
        "model": MODEL, "engine": arguments.precision, "trained_on": len(learned), "held_back": len(held_back),
        "asked": len(asked),
    }  # fmt: skip
    for way in arguments.ways.split(","):
        model: str | Path = MODEL
        if way == "after":
            path = json.dumps(str((folder / "train.jsonl").absolute()))
            model, found["training"] = tuned(folder / "run", [f"data.sources.0.path={path}", *arguments.sets])
        rows = ask(model, way, asked, learned, folder, arguments.precision)
        found[way] = {
            "right": sum(row["right"] for row in rows),
            "share": sum(row["right"] for row in rows) / len(rows),
        }
        found[way]["with_mark"] = sum("####" in row["reply"] for row in rows)
        (folder / "result.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(f"{MODEL}, engine {arguments.precision}, greedy, {len(asked)} of {len(held_back)} held-back problems")
    for way in arguments.ways.split(","):
        one = found[way]
        print(f"{way:10} {one['right']:4} right  {one['share']:6.1%}   ({one['with_mark']} replies with ####)")
    if "training" in found:
        facts = found["training"]
        print(f"training: {facts['tokens']:,} tokens in {facts['steps']} steps, {facts['minutes'] or 0:.1f} minutes")


if __name__ == "__main__":
    main()
