"""The facade: texts in, texts out, in one batch, from many threads, with nothing left behind."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

import deepwell
from deepwell.errors import DeepwellError, MissingModelError, UsageError
from deepwell.lm import Completion, ModelConfig, SamplingParams, Tokenizer, Transformer
from deepwell.lm.engine.model import Model
from deepwell.lm.engine.request import Request, StreamPiece

GREEDY = SamplingParams(temperature=0, max_tokens=24)
CHAT = [{"role": "user", "content": "What is a well?"}]


def _network(tokenizer: Tokenizer, seed: int = 0) -> Transformer:
    torch.manual_seed(seed)
    shape = ModelConfig.named("debug").replace(vocab_size=tokenizer.vocab_size + 3, initializer_range=0.15)
    return Transformer(shape.replace(bos_token_id=None, eos_token_id=()), dtype=torch.float64)


@pytest.fixture
def model(chatml: Tokenizer) -> Model:
    return deepwell.Model(_network(chatml), chatml, cache_bytes=2**21)


def _idle(model: Model) -> bool:
    return not model.engine.busy and model.engine.allocator.in_use == 0


def test_a_batch_gives_each_prompt_what_it_gets_alone(model: Model) -> None:
    asked: list[Any] = ["Deep wells", model.tokenizer.encode("Shallow"), "a", "Deep wells"]
    together = model.generate(asked, GREEDY)
    assert [one.sampled for one in together] == [model.generate([one], GREEDY)[0].sampled for one in asked]
    first = together[0]
    assert isinstance(first, Completion)
    assert first.prompt_tokens == len(model.tokenizer.encode("Deep wells"))
    assert first.finish == ("length" if len(first.tokens) == 24 else "stop")
    assert first.text == model.tokenizer.decode(first.tokens)
    assert model.generate("Deep wells", [GREEDY])[0].tokens == first.tokens
    assert _idle(model)


def test_a_stream_is_the_answer_in_pieces(model: Model) -> None:
    whole = model.chat(CHAT, GREEDY)
    pieces = list(model.stream(CHAT, GREEDY))
    assert all(isinstance(piece, StreamPiece) for piece in pieces)
    assert "".join(piece.text for piece in pieces) == whole.text
    assert "".join(piece.reasoning for piece in pieces) == whole.reasoning
    assert sum(piece.tokens for piece in pieces) == len(whole.tokens)
    assert (
        "".join(piece.text for piece in model.stream("Deep wells", GREEDY))
        == model.generate("Deep wells", GREEDY)[0].text
    )


def test_a_stream_that_is_closed_ends_its_request_at_once(model: Model) -> None:
    stream = model.stream(CHAT, SamplingParams(temperature=0, max_tokens=400, ignore_eos=True))
    next(stream)
    assert model.engine.busy
    stream.close()
    assert _idle(model)


def test_a_request_can_be_begun_and_cancelled(model: Model) -> None:
    with model.begin("Deep wells", GREEDY) as request:
        assert isinstance(request, Request)
        assert model.engine.busy
    assert _idle(model)
    request.cancel()
    assert request.result().finish == "cancelled"


def test_one_thread_can_drive_many_requests_and_ask_each_what_came(model: Model) -> None:
    alone = [model.generate([text], GREEDY)[0] for text in ("Deep wells", "a")]
    prepared = [model.prepare(text, GREEDY) for text in ("Deep wells", "a")]
    assert _idle(model)
    requests = [model.start(one) for one in prepared]
    assert [request.poll() for request in requests] == [StreamPiece(), StreamPiece()]
    pieces: list[list[StreamPiece]] = [[], []]
    goes_on = True
    while goes_on:
        goes_on = model.step()
        for request, got in zip(requests, pieces, strict=True):
            got.append(request.poll())
    for request, got, one in zip(requests, pieces, alone, strict=True):
        assert (request.finish, request.error) == (one.finish, None)
        assert "".join(piece.text for piece in got) == one.text
        assert [sampled for piece in got for sampled in piece.sampled] == list(one.sampled)
        assert request.poll() == StreamPiece()
        assert request.prompt_tokens == one.prompt_tokens
        assert request.reused_tokens <= one.prompt_tokens
    assert not model.step()
    assert _idle(model)


def test_an_answer_can_be_begun_for_the_model(model: Model) -> None:
    begun = [*CHAT, {"role": "assistant", "content": "A hole"}]
    closed, left_open = (model.prepare(begun, GREEDY, continue_last=last) for last in (False, True))
    assert model.tokenizer.decode(left_open.tokens).endswith("A hole")
    assert not model.tokenizer.decode(closed.tokens).endswith("A hole")


def test_a_stop_string_ends_the_answer_before_it(model: Model) -> None:
    free = model.generate("Deep wells", GREEDY)[0]
    stop = free.text[5:8]
    params = SamplingParams(temperature=0, max_tokens=24, stop=[stop])
    stopped = model.generate("Deep wells", params)[0]
    assert stopped.text == free.text[: free.text.index(stop)]
    assert stopped.finish == "stop"
    assert len(stopped.tokens) < len(free.tokens)
    assert stopped.tokens == free.tokens[: len(stopped.tokens)]
    assert _idle(model)
    # Also where somebody else's tokens are waited for first.
    before = model.engine.counters.steps
    assert model.generate(["Shallow", "Deep wells"], [SamplingParams(max_tokens=200), params])[1] == stopped
    assert stopped.reused_tokens == 0
    assert model.engine.counters.steps > before


def test_a_seed_repeats_and_a_form_is_kept(model: Model) -> None:
    params = SamplingParams(seed=5, max_tokens=20)
    assert model.chat(CHAT, params).tokens == model.chat(CHAT, params).tokens
    assert model.chat(CHAT, params).tokens != model.chat(CHAT, SamplingParams(seed=6, max_tokens=20)).tokens
    schema = {"type": "object", "properties": {"deep": {"type": "boolean"}}, "required": ["deep"]}
    schema["additionalProperties"] = False
    assert json.loads(model.chat(CHAT, SamplingParams(json_schema=schema, max_tokens=60)).text).keys() == {"deep"}


def test_thoughts_are_kept_apart_and_counted(deepseek: Tokenizer) -> None:
    model = Model(_network(deepseek), deepseek, cache_bytes=2**21)
    params = SamplingParams(temperature=0, max_tokens=30, thinking=True, thinking_budget=7, ignore_eos=True)
    answer = model.chat(CHAT, params)
    assert 7 <= answer.reasoning_tokens < 30
    assert answer.reasoning
    assert "</think>" not in answer.text + answer.reasoning


def test_log_probabilities_are_those_that_score_gives(model: Model) -> None:
    prompt = model.tokenizer.encode("Deep wells are deep")
    answer = model.generate([prompt], SamplingParams(seed=1, max_tokens=12, logprobs=2, top_p=0.5))[0]
    scores = model.score([*prompt, *answer.tokens])
    assert len(scores) == len(prompt) + len(answer.tokens) - 1
    assert [one.logprob for one in answer.sampled] == pytest.approx(scores[len(prompt) - 1 :], abs=1e-5)
    assert all(len(one.top) == 2 for one in answer.sampled)
    assert model.score(prompt[:1]) == []


def test_scores_of_a_long_text_are_those_of_its_pieces_at_their_place(model: Model) -> None:
    tokens = [token % 250 for token in range(3, 400)]
    with torch.no_grad():
        logprobs = model.network(torch.tensor([tokens]))[0].float().log_softmax(-1)
    wanted = [float(logprobs[place, token]) for place, token in enumerate(tokens[1:])]
    assert model.score(tokens) == pytest.approx(wanted, abs=1e-6)


def test_many_threads_share_the_engine_and_get_what_they_get_alone(model: Model) -> None:
    asked = [f"well {number}" for number in range(8)]
    alone = [model.generate(one, GREEDY)[0].tokens for one in asked]
    got: dict[int, list[int]] = {}
    before = model.engine.counters.steps

    def ask(number: int) -> None:
        got[number] = model.generate(asked[number], GREEDY)[0].tokens

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [got[number] for number in range(8)] == alone
    assert model.engine.counters.steps - before <= sum(map(len, alone))
    assert _idle(model)


def test_a_request_that_fails_disturbs_no_other(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    from deepwell.lm.engine.sampler import SamplerState

    alone = model.generate("good", GREEDY)[0].tokens
    true = SamplerState.adjust
    with model.begin("bad", GREEDY) as bad, model.begin("good", GREEDY) as good:
        bad.sequence.state.__dict__["bad"] = True
        monkeypatch.setattr(SamplerState, "adjusts", property(lambda state: True))
        monkeypatch.setattr(
            SamplerState,
            "adjust",
            lambda state, logits: (
                torch.full_like(logits, -torch.inf) if "bad" in state.__dict__ else true(state, logits)
            ),
        )
        assert good.result().tokens == alone
        with pytest.raises(DeepwellError, match="no token that may come next"):
            bad.result()
        assert bad.sequence.finish == "error"
    assert _idle(model)


@pytest.mark.parametrize(("prompt", "message"), [
    ("", "no tokens"), ([10**6], "outside the network"), ("a " * 3000, "tokens; this network reads 512"),
])  # fmt: skip
def test_a_bad_prompt_is_an_error_and_leaves_nothing_behind(model: Model, prompt: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        model.generate(["fine", prompt], GREEDY)
    assert _idle(model)
    with pytest.raises(UsageError, match="2 prompts and 1 params"):
        model.generate(["a", "b"], [GREEDY])


@pytest.mark.parametrize("tokens", [[], [1] * 513, [10**6], [-1]])
def test_what_cannot_be_scored_is_an_error(model: Model, tokens: list[int]) -> None:
    with pytest.raises(UsageError):
        model.score(tokens)


def test_a_tokenizer_of_another_model_is_refused(chatml: Tokenizer) -> None:
    network = Transformer(ModelConfig.named("debug").replace(vocab_size=100))
    with pytest.raises(UsageError, match="do not belong together"):
        Model(network, chatml)


def test_a_model_is_loaded_in_fp8(chatml: Tokenizer, tmp_path: Path) -> None:
    network = _network(chatml).float()
    deepwell.lm.save(network, tmp_path / "tiny", precision="f32", tokenizer=chatml)
    model = Model.load(tmp_path / "tiny", precision="fp8", device="cpu", cache_bytes=2**20)
    assert type(model.network.layers[0].self_attn.o_proj).__name__ == "Fp8Linear"
    assert model.generate("a", SamplingParams(max_tokens=2, ignore_eos=True))[0].tokens


@pytest.mark.parametrize("precision", ["bf16", "fp8"])
def test_a_device_that_is_not_there_is_refused_before_anything_is_read(precision: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("no config")
    with pytest.raises(UsageError, match="'cuda:77' cannot be used"):
        Model.load(tmp_path, precision=precision, device="cuda:77")


def test_a_model_is_loaded_from_a_folder_in_the_precision_asked_for(chatml: Tokenizer, tmp_path: Path) -> None:
    network = _network(chatml).float()
    deepwell.lm.save(network, tmp_path / "tiny", precision="f32", tokenizer=chatml)
    model = Model.load(tmp_path / "tiny", precision="f32", device="cpu", cache_bytes=2**20)
    assert model.network.dtype is torch.float32
    assert (
        model.generate("Deep wells", GREEDY)[0].tokens
        == Model(network, chatml).generate("Deep wells", GREEDY)[0].tokens
    )
    assert Model.load(tmp_path / "tiny", device="cpu").network.dtype in {torch.float32, torch.bfloat16}
    with pytest.raises(MissingModelError):
        Model.load(tmp_path / "nothing")


@pytest.mark.models
def test_smollm2_answers_in_a_batch_as_a_plain_loop_does() -> None:
    model = Model.load("smollm2-135m-instruct", precision="f32", device="cpu")
    asked = ["The capital of France is", "Water boils at", "def fibonacci(n):", "1, 2, 3, 1, 2, 3, 1, 2,"]
    answers = model.generate(asked, SamplingParams(temperature=0, max_tokens=12, ignore_eos=True))
    assert "Paris" in answers[0].text
    for text, answer in zip(asked, answers, strict=True):
        prompt = model.tokenizer.encode(text)
        with torch.no_grad():
            best = model.network(torch.tensor([[*prompt, *answer.tokens]]))[0].argmax(-1).tolist()
        assert best[len(prompt) - 1 : -1] == answer.tokens
