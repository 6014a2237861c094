"""Completions through the ``openai`` client: prompts of every form, several answers, echo, and a text's middle."""

import json
from pathlib import Path
from typing import Any

import openai
import pytest

from deepwell.lm import SamplingParams
from deepwell.lm.engine.infill import infill_prompt

from .tiny import Live, live, tiny_model, tokenizers


def _asked(**more: Any) -> dict[str, Any]:
    return {"model": "tiny", "prompt": "Deep wells", "seed": 7, "max_tokens": 10, **more}


def test_a_text_is_gone_on_with_as_the_model_does_it(server: Live) -> None:
    told = server.client.completions.create(**_asked())
    own = server.model.generate(["Deep wells"], SamplingParams(seed=7, max_tokens=10))[0]
    (choice,) = told.choices
    assert (told.object, choice.text, choice.finish_reason, choice.index) == ("text_completion", own.text, "length", 0)
    assert told.usage is not None
    assert (told.usage.prompt_tokens, told.usage.completion_tokens) == (own.prompt_tokens, 10)
    unsaid = server.client.completions.create(model="tiny", prompt="a", extra_body={"ignore_eos": True})
    assert unsaid.usage is not None and unsaid.usage.completion_tokens == 16


def test_prompts_may_be_texts_tokens_or_lists_of_either(server: Live) -> None:
    tokens = server.model.tokenizer.encode("Deep wells")
    alone = server.client.completions.create(**_asked()).choices[0].text
    assert server.client.completions.create(**_asked(prompt=tokens)).choices[0].text == alone
    for prompts in (["Deep wells", "a"], [tokens, server.model.tokenizer.encode("a")]):
        told = server.client.completions.create(**_asked(prompt=prompts, n=2))
        assert [choice.index for choice in told.choices] == [0, 1, 2, 3]
        assert told.choices[0].text == alone
        assert told.usage is not None
        assert told.usage.prompt_tokens == len(tokens) + len(server.model.tokenizer.encode("a"))
        assert told.usage.completion_tokens == 40


@pytest.mark.parametrize("more", [{}, {"logprobs": 2}, {"echo": True, "n": 2}, {"prompt": ["a", "b"]}])
def test_a_stream_is_the_answers_in_pieces(server: Live, more: dict[str, Any]) -> None:
    whole = server.client.completions.create(**_asked(**more))
    chunks = list(
        server.client.completions.create(**_asked(**more), stream=True, stream_options={"include_usage": True})
    )
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage
    for choice in whole.choices:
        its = [one for chunk in chunks for one in chunk.choices if one.index == choice.index]
        assert "".join(one.text for one in its) == choice.text
        assert its[-1].finish_reason == choice.finish_reason
        if choice.logprobs is not None:
            logs = [one.logprobs for one in its if one.logprobs is not None]
            for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
                assert [value for log in logs for value in getattr(log, name)] == getattr(choice.logprobs, name)


def test_log_probabilities_stand_beside_their_tokens(server: Live) -> None:
    logprobs = server.client.completions.create(**_asked(logprobs=2)).choices[0].logprobs
    own = server.model.generate(["Deep wells"], SamplingParams(seed=7, max_tokens=10, logprobs=2))[0]
    assert logprobs is not None and logprobs.tokens and logprobs.token_logprobs and logprobs.text_offset
    assert logprobs.token_logprobs == pytest.approx([one.logprob for one in own.sampled], abs=1e-4)
    # Pieces of characters look alike as texts.
    assert all(1 <= len(best) <= 2 for best in logprobs.top_logprobs or ())
    assert len(logprobs.top_logprobs or ()) == len(logprobs.tokens) == 10
    assert logprobs.text_offset[0] == 0
    assert logprobs.text_offset[-1] == sum(map(len, logprobs.tokens[:-1]))


def test_an_echo_begins_with_the_prompt(server: Live) -> None:
    plain = server.client.completions.create(**_asked()).choices[0].text
    tokens = server.model.tokenizer.encode("Deep wells", bos=False)
    for prompt in ("Deep wells", tokens):
        assert (
            server.client.completions.create(**_asked(prompt=prompt, echo=True))
            .choices[0]
            .text.startswith("Deep wells")
        )
    assert server.client.completions.create(**_asked(echo=True)).choices[0].text == "Deep wells" + plain


def test_a_middle_is_filled_in_where_the_model_can(server: Live, tmp_path: Path) -> None:
    with pytest.raises(openai.BadRequestError, match="no tokens for it"):
        server.client.completions.create(**_asked(suffix=" are deep."))
    marks = ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>")
    with live(tiny_model(tmp_path, controls=(*tokenizers.DEEPSEEK, *marks))) as coder:
        told = coder.client.completions.create(**_asked(prompt="def f(x):\n", suffix="\n    return y"))
        tokens = infill_prompt(coder.model.tokenizer, "def f(x):\n", "\n    return y")
        own = coder.model.generate([tokens], SamplingParams(seed=7, max_tokens=10))[0]
        assert told.choices[0].text == own.text
        assert told.usage is not None and told.usage.prompt_tokens == len(tokens)
        with pytest.raises(openai.BadRequestError, match="Give both as texts"):
            coder.client.completions.create(**_asked(prompt=tokens, suffix="b"))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"echo": True, "logprobs": 1}, "leave out echo"), ({"prompt": ["a"] * 64, "n": 2}, "64 at once"),
        ({"prompt": []}, "prompt"), ({"prompt": ""}, "no tokens"), ({"prompt": [[]]}, "prompt"),
        ({"prompt": [10**9]}, "outside the network"),
        ({"prompt": [-1]}, "prompt"), ({"prompt": [1, "a"]}, "prompt"), ({"best_of": 2}, "best_of"),
        ({"logprobs": 21}, "logprobs"),
    ],
)  # fmt: skip
def test_what_cannot_be_completed_is_an_error(server: Live, more: dict[str, Any], message: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        server.client.completions.create(**_asked(**more))
    assert message in json.dumps(caught.value.body)
