"""Many clients at once against a live server, some of which leave in the midst: does it last, and how fast is it?

    python benchmarks/serving.py                                # 64 clients, 2 minutes, smollm2-135m-instruct
    python benchmarks/serving.py --clients 8 --seconds 20 --json

A process runs ``deepwell serve``. Each client asks one chat after the other: prompts of 20 to 400 words, half of them
behind a text that all share, answers of 8 to 96 tokens, most of them streamed. One in four leaves: before the first
token, or after some. One in fifty sends nonsense, which must be refused with a message.

    no crash        every request is answered, refused in words, or left; the server ends by SIGTERM with exit code 0
    no leak         once idle, no block of the cache is in use and no answer is in the engine (from ``/metrics``)
    memory flat     the process has at most 5% more memory at the end than after a quarter of the time (30 s of 120)

Printed beside it: time to first token and tokens a second as the clients see them, at p50 and p95 (tokens a second: p5,
the slow end). The script fails if one of the three does not hold. Clients and server share the machine's cores.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

MODEL = "smollm2-135m-instruct"
CACHE_BYTES = 2**28
"""Small enough to be full soon, so that eviction is part of it, and memory is not seen to grow by first use."""

WORDS = (
    "deep well water pump stone river valley rope bucket depth meter pressure rain ground source clear cold filter "
    "pipe valve motor sand clay rock drill map survey winter summer level tank garden village mountain stream"
).split()
SHARED = "The following is known about the well of the village. " + " ".join(WORDS * 6)
LEAVING, WHOLE, NONSENSE = 0.25, 0.15, 0.02
"""Shares of requests: whose client leaves, that are not streamed, that make no sense."""

MOST_GROWTH = 1.05


@dataclass
class Tally:
    """What clients have seen."""

    outcomes: Counter[str] = field(default_factory=Counter)
    first_token: list[float] = field(default_factory=list)
    speed: list[float] = field(default_factory=list)
    tokens: int = 0
    wrong: list[str] = field(default_factory=list)


def a_chat(rng: random.Random, model: str) -> dict[str, object]:
    """The body of a request."""
    about = " ".join(rng.choices(WORDS, k=rng.randrange(20, 400)))
    system = [{"role": "system", "content": SHARED}] if rng.random() < 0.5 else []
    return {
        "model": model,
        "messages": [*system, {"role": "user", "content": f"Write about this: {about}"}],
        "max_tokens": rng.randrange(8, 96),
        "temperature": rng.choice([0.0, 0.8]),
        "stream": rng.random() >= WHOLE,
        "stream_options": {"include_usage": True},
    }


async def converse(http: httpx.AsyncClient, model: str, ends: float, rng: random.Random, tally: Tally) -> None:
    """One client: request after request until the time is over."""
    while time.perf_counter() < ends:
        body = a_chat(rng, model)
        if not body["stream"]:
            del body["stream_options"]
        chance = rng.random()
        try:
            if chance < NONSENSE:
                await nonsense(http, rng, tally)
            elif chance < NONSENSE + LEAVING:
                await leave(http, body, rng, tally)
            elif body["stream"]:
                await stream(http, body, tally)
            else:
                await whole(http, body, tally)
        except httpx.HTTPError as error:
            tally.wrong.append(f"{type(error).__name__}: {error}")


async def nonsense(http: httpx.AsyncClient, rng: random.Random, tally: Tally) -> None:
    """Ask something that must be refused in words."""
    bad = [b"{", b'{"messages": 3}', b"\xff\xfe", b'{"model": "nobody", "messages": []}', b"0" * 5_000_000]
    reply = await http.post("/chat/completions", content=rng.choice(bad), headers={"content-type": "application/json"})
    if not 400 <= reply.status_code < 500 or not reply.json()["error"]["message"]:
        tally.wrong.append(f"nonsense was answered with {reply.status_code}")
    tally.outcomes["refused"] += 1


async def leave(http: httpx.AsyncClient, body: dict[str, object], rng: random.Random, tally: Tally) -> None:
    """Ask, and be gone before the answer is."""
    try:
        async with asyncio.timeout(rng.choice([0.02, 0.2, 1.0, 3.0]) * rng.random()):
            async with http.stream("POST", "/chat/completions", json=body) as reply:
                async for _ in reply.aiter_lines():
                    pass
    except TimeoutError:
        tally.outcomes["left"] += 1
    else:
        tally.outcomes["answered"] += 1


async def whole(http: httpx.AsyncClient, body: dict[str, object], tally: Tally) -> None:
    """Ask for an answer in one piece."""
    reply = await http.post("/chat/completions", json=body)
    if reply.status_code != 200:
        tally.wrong.append(f"{reply.status_code}: {reply.text[:200]}")
        return
    tally.tokens += reply.json()["usage"]["completion_tokens"]
    tally.outcomes["answered"] += 1


async def stream(http: httpx.AsyncClient, body: dict[str, object], tally: Tally) -> None:
    """Ask for a stream, and take the times of its tokens."""
    begun = time.perf_counter()
    first, tokens, ended = 0.0, 0, False
    async with http.stream("POST", "/chat/completions", json=body) as reply:
        if reply.status_code != 200:
            tally.wrong.append(f"{reply.status_code}: {(await reply.aread())[:200]!r}")
            return
        async for line in reply.aiter_lines():
            if not line.startswith("data: "):
                continue
            if line == "data: [DONE]":
                ended = True
                continue
            event = json.loads(line.removeprefix("data: "))
            if "error" in event:
                tally.wrong.append(event["error"]["message"])
                return
            if any(choice["delta"].get("content") for choice in event["choices"]):
                first = first or time.perf_counter()
            if event.get("usage"):
                tokens = event["usage"]["completion_tokens"]
    took = time.perf_counter()
    if not ended:
        tally.wrong.append("a stream ended without [DONE]")
        return
    tally.outcomes["answered"] += 1
    tally.tokens += tokens
    if first:
        tally.first_token.append(first - begun)
    if first and tokens > 1 and took > first:
        tally.speed.append((tokens - 1) / (took - first))


async def shown(http: httpx.AsyncClient, url: str) -> dict[str, float]:
    """The server's metrics by name and labels."""
    text = (await http.get(url.removesuffix("/v1") + "/metrics")).text
    return {
        name: float(value)
        for name, _, value in (line.rpartition(" ") for line in text.splitlines())
        if not name.startswith("#")
    }


async def soak(
    url: str, process: psutil.Process, *, model: str, clients: int, seconds: float, seed: int = 0
) -> dict[str, Any]:
    """Let clients ask for a while; everything that was seen."""
    tally, memory = Tally(), []
    limits = httpx.Limits(max_connections=clients + 1, max_keepalive_connections=clients + 1)
    async with httpx.AsyncClient(base_url=url, timeout=300, limits=limits, trust_env=False) as http:
        begun = time.perf_counter()
        asking = [
            asyncio.create_task(converse(http, model, begun + seconds, random.Random(seed + number), tally))
            for number in range(clients)
        ]
        while not all(task.done() for task in asking):
            memory.append((time.perf_counter() - begun, process.memory_info().rss))
            await asyncio.wait(asking, timeout=max(0.1, seconds / 60))
        await asyncio.gather(*asking)
        took = time.perf_counter() - begun
        for _ in range(600):
            state = await shown(http, url)
            if not state["deepwell_requests_running"] and not state["deepwell_answers_running"]:
                break
            await asyncio.sleep(0.1)
    early = [rss for when, rss in memory if when <= seconds / 4]
    return {
        "clients": clients, "seconds": took, **dict(tally.outcomes), "wrong": tally.wrong[:20],
        "first_token_s": {"p50": at(tally.first_token, 50), "p95": at(tally.first_token, 95)},
        "tokens_per_s": {"p50": at(tally.speed, 50), "p5": at(tally.speed, 5)},
        "all_tokens_per_s": tally.tokens / took,
        "rss_mb": {"quarter": early[-1] / 2**20, "end": process.memory_info().rss / 2**20,
                   "most": max(rss for _, rss in memory) / 2**20},
        "blocks_used": state['deepwell_cache_blocks{state="used"}'],
        "answers_left": state["deepwell_answers_running"] + state["deepwell_answers_waiting"],
        "requests_left": state["deepwell_requests_running"] + state["deepwell_requests_queued"],
        "prompt_hit": state['deepwell_prompt_tokens_total{cache="hit"}'],
        "prompt_missed": state['deepwell_prompt_tokens_total{cache="missed"}'],
        "drafts_accepted": state['deepwell_draft_tokens_total{outcome="accepted"}'],
        "drafts_rejected": state['deepwell_draft_tokens_total{outcome="rejected"}'],
    }  # fmt: skip


def at(values: list[float], percent: int) -> float:
    """A percentile; NaN of nothing."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)] if ordered else float("nan")


def faults(found: dict[str, Any]) -> list[str]:
    """What should not have been."""
    rss = found["rss_mb"]
    checks = {
        f"something went wrong: {found['wrong']}": bool(found["wrong"]),
        "nobody was answered": not found.get("answered"),
        f"{found['blocks_used']:.0f} blocks are in use and nobody asks": found["blocks_used"] > 0,
        f"{found['answers_left']:.0f} answers are left": found["answers_left"] > 0,
        f"{found['requests_left']:.0f} requests are left": found["requests_left"] > 0,
        f"memory grew from {rss['quarter']:.0f} to {rss['end']:.0f} MiB": rss["end"] > rss["quarter"] * MOST_GROWTH,
    }
    return [fault for fault, there in checks.items() if there]


def main() -> int:
    """Start a server, soak it, stop it, tell."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    command = [
        str(Path(sys.executable).with_name("deepwell")), "serve", given.model, "--name", "soaked", "--port", "0",
        "--json", "--precision", given.precision, "--cache-bytes", str(CACHE_BYTES),
    ]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        line = server.stdout.readline()
        if not line.startswith('{"url"'):
            print(f"the server did not start: {line}{server.stdout.read()}")
            return 1
        url = json.loads(line)["url"]
        try:
            process = psutil.Process(server.pid)
            asked = {"model": "soaked", "clients": given.clients, "seconds": given.seconds, "seed": given.seed}
            found = asyncio.run(soak(url, process, **asked))
        finally:
            server.send_signal(signal.SIGTERM)
        found["exit_code"] = server.wait(60)
    wrong = faults(found) + [f"the server ended with exit code {found['exit_code']}"] * bool(found["exit_code"])
    if given.json:
        print(json.dumps({**found, "faults": wrong}))
        return bool(wrong)
    first, speed, rss = found["first_token_s"], found["tokens_per_s"], found["rss_mb"]
    told = found["prompt_hit"] / max(1, found["prompt_hit"] + found["prompt_missed"])
    print(f"{given.clients} clients, {found['seconds']:.0f} s, {given.model} ({given.precision})")
    for outcome in ("answered", "left", "refused"):
        print(f"  {outcome:<28}{found.get(outcome, 0):>8}")
    print(f"  {'time to first token, s':<28}{first['p50']:>8.2f} p50 {first['p95']:>8.2f} p95")
    print(f"  {'tokens/s of one answer':<28}{speed['p50']:>8.1f} p50 {speed['p5']:>8.1f} p5")
    print(f"  {'tokens/s of all':<28}{found['all_tokens_per_s']:>8.1f}")
    print(f"  {'prompt tokens/s computed':<28}{found['prompt_missed'] / found['seconds']:>8.1f}")
    print(f"  {'prompt found in the cache':<28}{told:>8.0%}")
    print(f"  {'memory, MiB':<28}{rss['quarter']:>8.0f} early {rss['end']:>6.0f} end {rss['most']:>6.0f} most")
    print(f"  {'blocks in use when idle':<28}{found['blocks_used']:>8.0f}")
    for fault in wrong:
        print(f"FAULT: {fault}")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
