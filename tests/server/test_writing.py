"""One answer from the engine's pieces to deltas: what is held back, and what comes with what."""

import pytest

from deepwell.errors import UsageError
from deepwell.lm.engine.request import StreamPiece
from deepwell.lm.engine.sampler import Sampled
from deepwell.server.driver import StoppedError
from deepwell.server.generation import Answer
from deepwell.server.writing import ChatWriter, TokenLog, finish_reason

from .tiny import Live


def _sampled(server: Live, text: str) -> tuple[Sampled, ...]:
    return tuple(Sampled(token, -1.0, ((token, -1.0),)) for token in server.model.tokenizer.encode(text, bos=False))


def test_log_probabilities_wait_for_the_text_and_leave_thoughts_and_the_end_out(server: Live) -> None:
    log = TokenLog(server.model)
    thought, answer = _sampled(server, "well"), _sampled(server, "deep")
    # Whether the first tokens are a thought is known only when one has been opened.
    assert log.push(StreamPiece(sampled=thought), shown=False) == []
    known = StreamPiece("deep", sampled=answer, thought_length=len(thought))
    told = log.push(known, shown=True)
    assert "".join(one.token for one in told) == "deep"
    end = min(server.model.ends)
    assert log.push(StreamPiece(sampled=(Sampled(end, -0.5),), thought_length=len(thought)), shown=True) == []


def test_a_token_behind_the_vocabulary_has_no_text(server: Live) -> None:
    behind = server.model.tokenizer.vocab_size + 1
    piece = StreamPiece("a", sampled=(Sampled(_sampled(server, "a")[0].token, -1.0, ((behind, -0.1),)),))
    (one,) = TokenLog(server.model).push(piece, shown=True)
    assert (one.top_logprobs[0].token, one.top_logprobs[0].bytes) == ("", [])


def test_log_probabilities_without_a_delta_of_their_own_get_one(server: Live) -> None:
    writer = ChatWriter(server.model, parser=None, logprobs=True)
    answer = Answer(0, prompt_tokens=1)
    assert list(writer.push(answer, StreamPiece(sampled=_sampled(server, "a")))) == []
    answer.finish = "length"
    ((delta, logprobs),) = writer.push(answer, StreamPiece())
    assert delta.content == "" and logprobs is not None and logprobs.content is not None
    message, whole = writer.message()
    assert message.content == "" and whole is not None and whole.content == logprobs.content


def test_reasoning_comes_under_both_names_before_the_answer(server: Live) -> None:
    writer = ChatWriter(server.model, parser=None, logprobs=False)
    deltas = [delta for delta, _ in writer.push(Answer(0, 1), StreamPiece("yes", "hm"))]
    assert [delta.model_dump(exclude_unset=True) for delta in deltas] == [
        {"reasoning_content": "hm", "reasoning": "hm"}, {"content": "yes"},
    ]  # fmt: skip
    message, logprobs = writer.message()
    assert (message.content, message.reasoning, message.reasoning_content, logprobs) == ("yes", "hm", "hm", None)


def test_why_an_answer_ended() -> None:
    assert finish_reason(Answer(0, 1, finish="stop")) == "stop"
    assert finish_reason(Answer(0, 1, finish="length")) == "length"
    with pytest.raises(StoppedError):
        finish_reason(Answer(0, 1, finish="cancelled"))
    with pytest.raises(UsageError, match="hard"):
        finish_reason(Answer(0, 1, finish="error", error=UsageError("hard")))
