"""A tiny random model, and servers on free ports of this machine."""

import contextlib
import importlib.util
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai
import torch
import uvicorn
from fastapi import FastAPI

import deepwell
from deepwell.lm import ModelConfig, Tokenizer, Transformer
from deepwell.server.app import create_app
from deepwell.server.driver import Driver
from deepwell.server.generation import Generation
from deepwell.testing import HashEncoder

_FILE = Path(__file__).parent.parent / "lm" / "weights" / "tiny_tokenizers.py"
_spec = importlib.util.spec_from_file_location("tiny_tokenizers", _FILE)
assert _spec is not None and _spec.loader is not None
tokenizers = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tokenizers)


def tiny_model(folder: Path, *, context: int = 512, **tokenizer: Any) -> deepwell.Model:
    """A random network that reads ``context`` tokens, with DeepSeek's tokenizer unless another one is asked for."""
    made = Tokenizer.from_folder(tokenizers.write_byte_level(folder, **{"controls": tokenizers.DEEPSEEK, **tokenizer}))
    torch.manual_seed(0)
    shape = ModelConfig.named("debug").replace(
        vocab_size=made.vocab_size + 3, initializer_range=0.15, max_position_embeddings=context, bos_token_id=None,
        eos_token_id=(),
    )  # fmt: skip
    return deepwell.Model(Transformer(shape, dtype=torch.float32), made, cache_bytes=2**23)


@dataclass
class Live:
    """A server that is up.

    Attributes:
        url: Where its API is, ``/v1`` included.
        model: What it serves as "tiny".
        client: A client that tries once.
        app: The application.
        ended: Every request whose last answer has ended.
    """

    url: str
    model: deepwell.Model
    client: openai.OpenAI
    app: FastAPI
    ended: list[Generation] = field(default_factory=list)

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        host, _, port = self.url.split("/")[2].partition(":")
        return host, int(port)

    def idle(self) -> bool:
        """Whether nothing is written and no block of the cache is in use."""
        return not self.model.engine.busy and self.model.engine.allocator.in_use == 0


@contextlib.contextmanager
def live(model: deepwell.Model) -> Iterator[Live]:
    """Serve a model in a thread; a ``HashEncoder`` makes embeddings."""
    driver = Driver(model)
    app = create_app(driver, name="tiny", encoder=HashEncoder())
    taken = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="on", ws="none"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [taken]})
    thread.start()
    url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
    up = Live(url, model, openai.OpenAI(base_url=url, api_key="none", max_retries=0), app)
    driver.on_end.append(up.ended.append)
    try:
        assert until(lambda: server.started)
        yield up
    finally:
        up.client.close()
        server.should_exit = True
        thread.join()


def until(true: Callable[[], bool], seconds: float = 30) -> bool:
    """Wait for something; whether it came."""
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.005)
    return true()
