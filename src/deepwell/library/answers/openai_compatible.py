"""A language model behind an OpenAI-compatible endpoint: vLLM, SGLang, llama.cpp, Ollama, LM Studio or a hosted one.

Only the URL that the user gave is contacted, redirects are not followed, and the key comes from the environment alone:
``DEEPWELL_API_KEY`` for any URL; ``OPENAI_API_KEY`` only for OpenAI's own servers and for this machine, so that a key
is never sent to somebody it does not belong to.

A request that fails before the first word of the reply is repeated, with pauses that double and are spread at random
so that many clients do not come back together; a server's ``Retry-After`` is honoured. Once words have come, a failure
ends the reply: repeating would say the beginning twice.
"""

from __future__ import annotations

import email.utils
import json
import os
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

from deepwell.errors import ChatError, UsageError
from deepwell.library.answers.thoughts import ThoughtSplitter, strip_thoughts
from deepwell.library.protocols import Delta, Message

if TYPE_CHECKING:
    import httpx

_RETRY_STATUS = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
_LOCAL = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass
class OpenAICompatible:
    """A ``ChatModel`` that asks a server.

    Attributes:
        base_url: As the server's documentation gives it, usually ending in ``/v1``.
        model: The name the server knows it by; empty asks the server, which must then offer exactly one, be it under
            several names (``root``).
        timeout: Seconds to wait for the next piece of a reply.
        connect_timeout: Seconds to wait for a connection.
        retries: How often a request is repeated after a failure that may pass.
        pause: Seconds before the first repetition; each further one waits twice as long.
        longest_pause: A server that asks for more patience than this many seconds is an error at once.
        name: The model's name, or the server's while that is not known.
        hold_text: Hold text back until it is known not to be a thought (see ``thoughts``). False streams at once, for
            models that do not think.
    """

    base_url: str
    model: str = ""
    timeout: float = 120.0
    connect_timeout: float = 10.0
    retries: int = 3
    pause: float = 0.5
    longest_pause: float = 30.0
    hold_text: bool = True
    name: str = field(init=False, default="")
    _url: str = field(init=False, repr=False, default="")

    def __post_init__(self) -> None:
        self._url = _endpoint(self.base_url)
        self.name = self.model or urlsplit(self._url).netloc.rpartition("@")[2]

    def chat(self, messages: Sequence[Message], *, max_tokens: int = 512, temperature: float = 0.0) -> Iterator[Delta]:
        """Stream a reply. Raises ``ChatError`` saying what failed, at which URL, and what to do."""
        import httpx

        timeout = httpx.Timeout(self.timeout, connect=self.connect_timeout)
        local = (urlsplit(self._url).hostname or "") in _LOCAL
        with httpx.Client(timeout=timeout, headers=self._headers(), trust_env=not local) as client:
            if not self.model:
                self.model = self.name = self._only_model(client)
            body = {
                "model": self.model,
                "messages": [_plain(message) for message in messages],
                "max_tokens": max_tokens,
                "temperature": temperature,
                "stream": True,
            }
            for attempt in range(self.retries + 1):
                started = False
                wait = self.pause * 2**attempt
                try:
                    with client.stream("POST", f"{self._url}/chat/completions", json=body) as response:
                        if response.status_code == 200:
                            for delta in _deltas(response, ThoughtSplitter(hold=self.hold_text)):
                                started = True
                                yield delta
                            return
                        response.read()
                        error = self._refused(client, response)
                        if response.status_code not in _RETRY_STATUS:
                            raise error
                        asked = _retry_after(response.headers)
                        if asked is not None and asked > self.longest_pause:
                            raise error
                        wait = max(wait, asked or 0.0)
                except httpx.TransportError as failure:
                    error = self._unreachable(failure, started)
                    if started:
                        raise error from failure
                if attempt == self.retries:
                    raise error
                time.sleep(min(wait, self.longest_pause) * random.uniform(1.0, 1.25))

    def _headers(self) -> dict[str, str]:
        key = self._key()
        return {"Authorization": f"Bearer {key}"} if key else {}

    def _key(self) -> str:
        key = os.environ.get("DEEPWELL_API_KEY", "").strip()
        host = urlsplit(self._url).hostname or ""
        if not key and (host in _LOCAL or host == "api.openai.com" or host.endswith(".openai.com")):
            key = os.environ.get("OPENAI_API_KEY", "").strip()
        if not key.isascii() or any(c.isspace() for c in key):
            raise ChatError(
                "the API key in the environment holds characters that no key has", hint="Set DEEPWELL_API_KEY again."
            )
        return key

    def _only_model(self, client: httpx.Client) -> str:
        models = self._offered(client)
        names = list(models)
        # A server may give its one model other names, and offer models of other kinds: those have no other names.
        meant = names if len(names) == 1 else list({root for name, root in models.items() if root != name} & {*names})
        if len(meant) == 1:
            return meant[0]
        offers = f"It offers: {', '.join(names[:20])}." if names else "It does not say what it offers."
        raise ChatError(f"no model was named for {self._shown}", hint=f"{offers} Name one: openai:MODEL@{self._shown}")

    def _offered(self, client: httpx.Client) -> dict[str, str]:
        """Names of the server's models, and of which model each is a name; empty when it does not tell."""
        import httpx

        try:
            response = client.get(f"{self._url}/models")
            entries = response.json()["data"] if response.status_code == 200 else []
            return {str(entry["id"]): str(entry.get("root") or entry["id"]) for entry in entries}
        except httpx.ConnectError as failure:
            raise self._unreachable(failure, started=False) from failure
        except (httpx.HTTPError, ValueError, KeyError, TypeError, AttributeError):
            return {}

    @property
    def _shown(self) -> str:
        """The URL for messages, without a password in it."""
        parts = urlsplit(self._url)
        return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))

    def _refused(self, client: httpx.Client, response: httpx.Response) -> ChatError:
        status, said = response.status_code, _error_text(response)
        if key := self._key():  # some servers say the key they refuse; it must not reach a log
            said = said.replace(key, "***")
        told = f" ({said})" if said else ""
        if status in (401, 403):
            sent = "refused the key in the environment" if self._key() else "wants a key and none was sent"
            return ChatError(
                f"{self._shown} {sent} (status {status}){told}", hint="Set DEEPWELL_API_KEY to a key of that server."
            )
        if status in (404, 400, 422) and ("model" in said.lower() or status == 404):
            names = list(self._offered(client))
            if names and self.model not in names:
                return ChatError(
                    f"{self._shown} has no model {self.model!r}{told}", hint=f"It offers: {', '.join(names[:20])}."
                )
        if status == 404:
            return ChatError(
                f"{self._shown}/chat/completions is not there (status 404){told}",
                hint="Give the base URL as the server's documentation does, usually ending in /v1.",
            )
        if 300 <= status < 400:
            return ChatError(
                f"{self._shown} redirects to {response.headers.get('location', 'elsewhere')}, which is not followed",
                hint="Give the final URL.",
            )
        if status == 429:
            wait = _retry_after(response.headers)
            asked = f"It asks to wait {wait:.0f} s." if wait else "Try again later."
            return ChatError(f"{self._shown} is over its limit of requests (status 429){told}", hint=asked)
        if status in (400, 413, 422):
            return ChatError(
                f"{self._shown} did not accept the request (status {status}){told}",
                hint="If it is too long for the model, give fewer or shorter passages (evidence_tokens).",
            )
        return ChatError(f"{self._shown} failed with status {status}{told}", hint="See the server's log.")

    def _unreachable(self, failure: Exception, started: bool) -> ChatError:
        import httpx

        if isinstance(failure, httpx.ConnectTimeout):
            return ChatError(
                f"{self._shown} did not answer within {self.connect_timeout:g} s", hint="Is the address right?"
            )
        if isinstance(failure, httpx.TimeoutException):
            what = "stopped in the middle of its reply" if started else "sent nothing"
            return ChatError(
                f"{self._shown} {what} for {self.timeout:g} s",
                hint="The model may be slow or busy: give a longer timeout.",
            )
        if isinstance(failure, httpx.ConnectError):
            return ChatError(
                f"cannot connect to {self._shown}: {failure}", hint="Is the server running, and is the address right?"
            )
        return ChatError(
            f"the connection to {self._shown} broke: {failure or type(failure).__name__}", hint="Try again."
        )


def _endpoint(base_url: str) -> str:
    parts = urlsplit(base_url.strip())
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError(f"{base_url!r} is not the URL of a server", hint="Give one like http://127.0.0.1:8000/v1.")
    path = parts.path.rstrip("/").removesuffix("/chat/completions") or "/v1"
    return urlunsplit((parts.scheme, parts.netloc, path, "", ""))


def _plain(message: Message) -> dict[str, str]:
    """A message as the API takes it. Thoughts of earlier turns are never sent back."""
    content = strip_thoughts(message.content) if message.role == "assistant" else message.content
    return {"role": message.role, "content": content}


def _deltas(response: httpx.Response, splitter: ThoughtSplitter) -> Iterator[Delta]:
    """The reply's pieces, from an event stream or, where a server ignores ``stream``, from one JSON object."""
    for event in _events(response):
        if event.get("error"):
            raise ChatError(f"the model broke off: {_message_of(event['error'])}", hint="See the server's log.")
        for choice in event.get("choices") or ():
            piece = choice.get("delta") or choice.get("message") or {}
            thought = _text_of(piece.get("reasoning_content")) or _text_of(piece.get("reasoning"))
            if thought:
                yield Delta(reasoning=thought)
                yield from splitter.answering()
            if text := _text_of(piece.get("content")):
                yield from splitter.feed(text)
    yield from splitter.finish()


def _events(response: httpx.Response) -> Iterator[dict[str, Any]]:
    if "json" in response.headers.get("content-type", ""):
        response.read()
        yield _object(response.text)
        return
    data: list[str] = []
    for line in response.iter_lines():
        if line.startswith("data:"):
            data.append(line[5:].removeprefix(" "))
        elif not line and data:
            if data == ["[DONE]"]:
                return
            yield _object("\n".join(data))
            data = []
    if data and data != ["[DONE]"]:
        yield _object("\n".join(data))


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ChatError(
            f"the server's reply is not what this API sends: {text[:80]!r}", hint="Is it an OpenAI-compatible server?"
        )
    return value


def _text_of(value: object) -> str:
    """Content is a string, or a list of parts of which the text ones count."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "".join(
            str(part.get("text", "")) for part in value if isinstance(part, dict) and part.get("type") == "text"
        )
    return ""


def _error_text(response: httpx.Response) -> str:
    try:
        value = response.json()
    except ValueError:
        return " ".join(response.text.split())[:200]
    return _message_of(value.get("error", value) if isinstance(value, dict) else value)


def _message_of(error: object) -> str:
    if isinstance(error, Mapping):
        error = error.get("message") or error.get("detail") or error
    return " ".join(str(error).split())[:200]


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait that the server asks for: a number or a date."""
    asked = headers.get("retry-after", "").strip()
    if not asked:
        return None
    try:
        return max(0.0, float(asked))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(asked).timestamp() - time.time())
    except (ValueError, TypeError):
        return None
