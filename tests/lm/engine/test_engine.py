"""The engine's tokens are those of a plain loop without a cache, whatever else is computed and however."""

import copy
import random
from collections.abc import Callable

import pytest
import torch

from deepwell.errors import UsageError
from deepwell.lm.engine.engine import Engine
from deepwell.lm.engine.pace import Pace
from deepwell.lm.engine.params import SamplingParams
from deepwell.lm.engine.sampler import SamplerState
from deepwell.lm.engine.speculation import Drafter
from deepwell.lm.model.transformer import Transformer

from .networks import SHAPES, greedy, is_greedy, plain_loop, prompts

Network = Callable[[str], Transformer]


def _run(engine: Engine, most_steps: int = 4000) -> None:
    for _ in range(most_steps):
        if not engine.busy:
            return
        engine.step()
    raise AssertionError("the engine does not come to an end")


def _bytes(model: Transformer, tokens: int) -> int:
    config = model.config
    return tokens * (config.num_hidden_layers + config.num_nextn_predict_layers) * config.latent_width * 8


@pytest.mark.parametrize("name", SHAPES)
def test_fifty_prompts_in_one_batch_are_those_of_a_plain_loop(
    name: str, network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunked prefill, preemption forced by a small cache, and speculation, all at once."""
    # Whether guesses pay is measured in seconds; here they are always made.
    monkeypatch.setattr(Pace, "best", lambda pace, rate, most, sequences: most)
    model = network(name)
    asked = prompts(50, 60)
    engine = Engine(model, cache_bytes=_bytes(model, 240), block_size=4, token_budget=37, most_sequences=30)
    sequences = [engine.add(prompt, greedy(prompt), most=20) for prompt in asked]
    _run(engine)
    assert engine.scheduler.preemptions > 0
    assert engine.counters.accepted > 0
    assert engine.allocator.in_use == 0
    for prompt, sequence in zip(asked, sequences, strict=True):
        assert len(sequence.answer) == 20
        assert is_greedy(model, prompt, sequence.answer)
        assert sequence.finish == "length"
        assert [one.token for one in sequence.outbox] == sequence.answer


@pytest.mark.parametrize("options", [
    {"speculate": False}, {"block_size": 1}, {"block_size": 64, "token_budget": 64}, {"most_sequences": 1},
])  # fmt: skip
def test_no_option_changes_the_answer(options: dict[str, int], network: Network) -> None:
    model = network("grouped")
    engine = Engine(model, cache_bytes=_bytes(model, 2000), **options)  # type: ignore[arg-type]
    asked = prompts(8, 40, seed=1)
    sequences = [engine.add(prompt, greedy(prompt), most=9) for prompt in asked]
    _run(engine)
    assert [sequence.answer for sequence in sequences] == [plain_loop(model, prompt, 9) for prompt in asked]


def test_a_request_gets_the_same_tokens_alone_and_among_others(network: Network) -> None:
    model = network("experts")
    prompt = prompts(3, 30, seed=2)[1]
    params = SamplingParams(temperature=1.3, top_p=0.9, seed=11)

    def ask(others: int) -> list[int]:
        engine = Engine(model, cache_bytes=_bytes(model, 3000))
        for other in prompts(others, 40, seed=3):
            engine.add(other, SamplerState(SamplingParams(), other, 97), most=15)
        mine = engine.add(prompt, SamplerState(params, prompt, 97), most=15)
        _run(engine)
        return mine.answer

    alone = ask(0)
    assert ask(32) == alone == ask(5)


def test_a_second_question_on_the_same_text_computes_only_what_is_new(network: Network) -> None:
    model = network("latent")
    engine = Engine(model, cache_bytes=_bytes(model, 500), block_size=8)
    text = prompts(1, 60)[0]
    for question, reused in (([3, 1, 4], 0), ([1, 5], len(text) // 8 * 8), ([1, 5], len([*text, 1]) // 8 * 8)):
        prompt = text + question
        sequence = engine.add(prompt, greedy(prompt), most=5)
        _run(engine)
        assert sequence.reused == reused
        assert sequence.answer == plain_loop(model, prompt, 5)


def test_an_answer_ends_at_its_end_token_at_its_length_and_at_the_end_of_the_cache(network: Network) -> None:
    model = network("grouped")
    prompt = prompts(2, 30, seed=5)[1]
    free = plain_loop(model, prompt, 20)
    end = free[6]
    cut = free[: free.index(end) + 1]
    engine = Engine(model, cache_bytes=_bytes(model, 64), block_size=8)
    stopped = engine.add(prompt, greedy(prompt), most=20, ends=(end,))
    _run(engine)
    assert (stopped.answer, stopped.finish) == (cut, "stop")
    room = engine.capacity - len(prompt)
    full = engine.add(prompt, greedy(prompt), most=1000)
    _run(engine)
    assert (full.answer, full.finish) == (plain_loop(model, prompt, room), "length")


def test_random_cancellations_free_blocks_at_once_and_disturb_nobody(network: Network) -> None:
    model = network("grouped")
    rng = random.Random(0)
    engine = Engine(model, cache_bytes=_bytes(model, 150), block_size=4, token_budget=20, most_sequences=8)
    asked = prompts(30, 40, seed=7)
    sequences = []
    for prompt in asked:
        sequences.append(engine.add(prompt, greedy(prompt), most=10))
        engine.step()
        if rng.random() < 0.4:
            victim = rng.choice(sequences)
            held = set(victim.table)
            engine.cancel(victim)
            assert all(not engine.allocator.users(block) for block in held - _held(sequences))
            assert victim.table == []
    _run(engine)
    assert engine.allocator.in_use == 0
    kept = [(p, s) for p, s in zip(asked, sequences, strict=True) if s.finish != "cancelled"]
    assert 5 < len(kept) < 30
    assert all(is_greedy(model, prompt, sequence.answer) for prompt, sequence in kept)


def _held(sequences: list) -> set[int]:  # type: ignore[type-arg]
    return {block for sequence in sequences for block in sequence.table}


def test_a_text_that_repeats_itself_takes_fewer_steps(network: Network) -> None:
    model = copy.deepcopy(network("grouped"))
    with torch.no_grad():
        for layer in model.layers:  # a network that sees the last token only goes round in circles
            layer.self_attn.o_proj.weight.zero_()
    loop = [5, *plain_loop(model, [5], 60)]
    steps = {}
    for speculate in (True, False):
        engine = Engine(model, cache_bytes=_bytes(model, 512), speculate=speculate)
        sequence = engine.add(loop, greedy(loop), most=60)
        _run(engine)
        steps[speculate] = engine.counters.steps
        assert is_greedy(model, loop, sequence.answer)
    assert steps[False] == 60
    assert steps[True] < 10


def _cycle(*, right: bool) -> Transformer:
    """A network that goes through all of its tokens in a circle; its module of deeper prediction knows it or not."""
    model = Transformer(SHAPES["latent"].replace(num_nextn_predict_layers=1), dtype=torch.float64)
    size, vocab = model.config.hidden_size, model.config.vocab_size
    (module,) = model.mtp_modules()
    torch.manual_seed(3)
    with torch.no_grad():
        for block in [*model.layers, module.block]:
            block.self_attn.o_proj.weight.zero_()  # type: ignore[union-attr, operator]
            block.mlp.down_proj.weight.zero_()  # type: ignore[union-attr, operator]
        rows = torch.nn.functional.normalize(torch.randn(vocab, size, dtype=model.dtype), dim=-1)
        model.embed_tokens.weight.copy_(rows)
        model.lm_head.weight.copy_(rows.roll(1, 0))
        # It sees the following token alone, so its own guesses are as good a ground as the network's.
        module.eh_proj.weight.copy_(torch.cat([torch.eye(size), torch.zeros(size, size)], dim=1) * (1 if right else -1))
    return model


@pytest.mark.parametrize("block_size", [1, 4, 16])
def test_drafts_of_the_module_go_deeper_while_they_are_right(block_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pace, "best", lambda pace, rate, most, sequences: most)
    steps, accepted = {}, {}
    for right in (True, False):
        model = _cycle(right=right)
        engine = Engine(model, cache_bytes=_bytes(model, 512), block_size=block_size)
        sequence = engine.add([1, 2, 3], greedy([1]), most=80)
        _run(engine)
        assert sequence.answer == [*range(4, 84)]
        steps[right], accepted[right] = engine.counters.steps, engine.counters.accepted
    # Four guesses and the token behind them, where the sequence has a place for them in its blocks.
    assert steps[True] <= {1: 41, 4: 28, 16: 20}[block_size]
    assert accepted[True] == 80 - steps[True]
    assert (steps[False], accepted[False]) == (80, 0)


def test_a_deep_draft_is_what_the_module_says_when_its_guesses_are_taken_for_true(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pace, "best", lambda pace, rate, most, sequences: most)
    monkeypatch.setattr(Drafter, "propose", lambda drafter, tokens, most, worth: [])
    monkeypatch.setattr(Drafter, "depth", lambda drafter, tokens, most, worth: min(3, most))
    model = network("experts")
    (module,) = model.mtp_modules()
    engine = Engine(model, cache_bytes=_bytes(model, 512))
    sequences = [engine.add(prompt, greedy(prompt), most=9) for prompt in prompts(3, 20, seed=4)]
    seen = 0
    while engine.busy:
        engine.step()
        for sequence in sequences:
            if not sequence.draft or sequence.finish is not None:
                continue
            text, wanted = list(sequence.tokens), []
            with torch.no_grad():
                states = model.hidden(torch.tensor([text[:-1]]))
                for _ in sequence.draft:
                    logits, deeper = model.draft(states, torch.tensor([text[1:]]))
                    wanted.append(int(logits[0, -1].argmax()))
                    text.append(wanted[-1])
                    states = torch.cat([states, module.norm(deeper[:, -1:])], dim=1)
            assert sequence.draft == wanted
            seen += len(wanted)
    assert seen > 40


def test_drafts_stop_where_they_cost_more_than_they_bring(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _cycle(right=True)
    asked: list[tuple[float, int]] = []

    def never(pace: Pace, rate: float, most: int, sequences: int) -> int:
        asked.append((rate, sequences))
        return 0

    monkeypatch.setattr(Pace, "best", never)
    engine = Engine(model, cache_bytes=_bytes(model, 512))
    sequence = engine.add([1, 2, 3], greedy([1]), most=80)
    _run(engine)
    assert sequence.answer == [*range(4, 84)]
    assert engine.counters.proposed == 0
    assert 3 < len(asked) < 9  # it asks again, less and less often
    assert all(sequences == 1 for _, sequences in asked)


def test_a_step_without_requests_does_nothing(network: Network) -> None:
    model = network("grouped")
    engine = Engine(model, cache_bytes=_bytes(model, 64))
    engine.step()
    assert engine.counters.steps == 0
    assert not engine.busy


@pytest.mark.parametrize(("prompt", "message"), [
    ([], "no tokens"), ([97], "outside the network's 97"), ([-1], "outside"),
    ([1] * 64, "64 tokens; the cache holds 64"), ([1] * 600, "the prompt has 600 tokens"),
])  # fmt: skip
def test_a_prompt_that_cannot_be_answered_is_an_error_with_the_counts(
    prompt: list[int], message: str, network: Network
) -> None:
    model = network("grouped")
    engine = Engine(model, cache_bytes=_bytes(model, 64), block_size=8)
    with pytest.raises(UsageError, match=message):
        engine.add(prompt, greedy(prompt), most=5)


def test_a_cache_too_small_for_a_block_is_an_error_with_the_counts(network: Network) -> None:
    model = network("grouped")
    with pytest.raises(UsageError, match=r"100 bytes; 16 tokens of this network need 12288"):
        Engine(model, cache_bytes=100)


def test_learning_goes_on_with_the_same_network_after_generating() -> None:
    model = Transformer(SHAPES["latent"], dtype=torch.float32)
    engine = Engine(model, cache_bytes=2**22)
    engine.add([1, 2, 3], greedy([1, 2, 3]), most=4)
    _run(engine)
    model.train()
    model.loss(torch.tensor([[1, 2, 3, 4]])).total.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
