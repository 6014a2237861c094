"""The engine over compiled code: acceptance of issue 4, loading, falling back, threads and forks."""

import copy
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import deepwell
from deepwell.errors import DeepwellError, UsageError
from deepwell.lm import Tokenizer
from deepwell.lm.engine import memory
from deepwell.lm.engine.engine import Engine
from deepwell.lm.engine.model import Model
from deepwell.lm.engine.native import library as native
from deepwell.lm.engine.native.program import Precision
from deepwell.lm.engine.pace import Pace
from deepwell.lm.engine.params import SamplingParams
from deepwell.lm.engine.sampler import SamplerState
from deepwell.lm.model.config import ModelConfig
from deepwell.lm.model.transformer import Transformer
from deepwell.lm.weights.quantising import WORDS, round_in_place

from ..networks import greedy, is_greedy, prompts

Network = Callable[[str], Transformer]
PRECISIONS: tuple[Precision, ...] = ("f32", "bf16", "int8", "int4")
GREEDY = SamplingParams(temperature=0, max_tokens=16, ignore_eos=True)


def cache_bytes(model: Transformer, tokens: int, precision: Precision) -> int:
    config = model.config
    layers = config.num_hidden_layers + config.num_nextn_predict_layers
    return tokens * layers * config.latent_width * (4 if precision == "f32" else 2)


def run(engine: Engine) -> None:
    for _ in range(4000):
        if not engine.busy:
            return
        engine.step()
    raise AssertionError("the engine does not come to an end")


@pytest.fixture
def two_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)


# ---- acceptance ----


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", ["grouped", "window", "latent", "experts"])
def test_fifty_prompts_in_one_batch_are_each_as_it_is_alone(
    name: str, precision: Precision, network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunked prefill, preemption by a small cache and speculation against none of them: the same tokens."""
    model = network(name)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2 if (name, precision) == ("latent", "int8") else 1)
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    # Whether guesses pay is measured in seconds; here they are always made.
    monkeypatch.setattr(Pace, "best", lambda pace, rate, most, sequences: most)
    asked = prompts(50, 60)
    engine = Engine(
        model, cache_bytes=cache_bytes(model, 240, precision), block_size=4, token_budget=37, most_sequences=30,
        precision=precision,
    )  # fmt: skip
    sequences = [engine.add(prompt, greedy(prompt), most=20) for prompt in asked]
    run(engine)
    assert engine.scheduler.preemptions > 0
    assert engine.counters.accepted > 0
    assert engine.allocator.in_use == 0
    single = Engine(model, cache_bytes=cache_bytes(model, 2000, precision), speculate=False, precision=precision)
    for prompt, sequence in list(zip(asked, sequences, strict=True))[:: 2 if precision == "int8" else 4]:
        alone = single.add(prompt, greedy(prompt), most=20)
        run(single)
        assert sequence.answer == alone.answer
        assert [one.logprob for one in sequence.outbox] == [one.logprob for one in alone.outbox]
    if precision == "f32":
        assert all(is_greedy(model, prompt, one.answer) for prompt, one in zip(asked, sequences, strict=True))


@pytest.mark.parametrize("precision", ["f32", "int4"])
def test_a_seed_gives_the_same_answer_alone_and_among_others(precision: Precision, network: Network) -> None:
    model = network("experts")
    prompt = prompts(3, 30, seed=2)[1]

    def ask(others: int, seed: int) -> list[int]:
        engine = Engine(model, cache_bytes=cache_bytes(model, 3000, precision), precision=precision)
        for other in prompts(others, 40, seed=3):
            engine.add(other, SamplerState(SamplingParams(), other, 97), most=15)
        params = SamplingParams(temperature=1.2, top_p=0.9, seed=seed)
        mine = engine.add(prompt, SamplerState(params, prompt, 97), most=15)
        run(engine)
        return mine.answer

    assert ask(0, 11) == ask(12, 11) != ask(0, 12)


def test_a_network_for_pytorch_alone_is_refused(network: Network) -> None:
    with pytest.raises(UsageError, match="cannot carry out this network"):
        Engine(network("compressed"), cache_bytes=2**20, precision="int8")


# ---- models ----


def tiny(tokenizer: Tokenizer, **changes: Any) -> Transformer:
    torch.manual_seed(0)
    shape = ModelConfig.named("debug").replace(vocab_size=tokenizer.vocab_size + 3, initializer_range=0.15)
    return Transformer(shape.replace(bos_token_id=None, eos_token_id=(), **changes), dtype=torch.float32)


@torch.no_grad()
def log_probabilities(network: Transformer, tokens: list[int]) -> torch.Tensor:
    logits = network(torch.tensor([tokens]))[0, :-1].float()
    return logits.log_softmax(-1).gather(1, torch.tensor(tokens[1:])[:, None])[:, 0]


@pytest.mark.parametrize(("precision", "bound"), [("f32", 1e-4), ("bf16", 0.3), ("int8", 0.3), ("int4", 0.8)])
def test_scores_are_the_networks_log_probabilities(precision: Precision, bound: float, chatml: Tokenizer) -> None:
    network = tiny(chatml)
    tokens = [(7 * place) % network.config.vocab_size for place in range(400)]
    model = Model(network, chatml, cache_bytes=2**21, precision=precision, most_sequences=8)
    found = torch.tensor(model.score(tokens))
    if precision in WORDS:
        round_in_place(network, WORDS[precision])
    assert (found - log_probabilities(network, tokens)).abs().median() < bound / 3
    assert (found - log_probabilities(network, tokens)).abs().max() < bound
    assert model.engine.allocator.in_use == 0


@pytest.mark.parametrize("form", ["folder", "gguf"])
@pytest.mark.parametrize("precision", ["f32", "bf16", "int8", "int4"])
def test_a_model_is_loaded_in_the_precision_asked_for(
    form: str, precision: Precision, chatml: Tokenizer, tmp_path: Path
) -> None:
    network = tiny(chatml)
    if form == "folder":
        deepwell.lm.save(network, tmp_path / "tiny", precision="f32", tokenizer=chatml)
        path = tmp_path / "tiny"
    else:
        path = tmp_path / "tiny.gguf"
        deepwell.lm.save(network, path, format="gguf", precision="f32", tokenizer=chatml)
    model = Model.load(path, precision=precision, device="cpu", cache_bytes=2**20)
    assert all(parameter.is_meta for parameter in model.network.parameters())
    wanted = Model(network, chatml, cache_bytes=2**20, precision=precision).generate("Deep wells", GREEDY)[0]
    answer = model.generate("Deep wells", GREEDY)[0]
    assert answer.tokens == wanted.tokens
    assert not network.embed_tokens.weight.is_meta


def test_auto_is_compiled_int8_for_a_folder(chatml: Tokenizer, tmp_path: Path) -> None:
    network = tiny(chatml)
    deepwell.lm.save(network, tmp_path / "tiny", precision="f32", tokenizer=chatml)
    loaded = Model.load(tmp_path / "tiny", device="cpu", cache_bytes=2**20)
    wanted = Model(network, chatml, cache_bytes=2**20, precision="int8").generate("Deep wells", GREEDY)[0]
    assert loaded.generate("Deep wells", GREEDY)[0].tokens == wanted.tokens


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_without_the_library_pytorch_computes_with_rounded_weights(
    precision: str, chatml: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same weights; inputs are rounded in one and not in the other, so only clear choices must be the same."""
    network = tiny(chatml)
    deepwell.lm.save(network, tmp_path / "tiny", precision="f32", tokenizer=chatml)
    compiled = Model.load(tmp_path / "tiny", precision=precision, device="cpu", cache_bytes=2**20)
    answer = compiled.generate("Deep wells", GREEDY)[0]
    monkeypatch.setattr(memory, "library", lambda: None)
    plain = Model.load(tmp_path / "tiny", precision=precision, device="cpu", cache_bytes=2**20)
    assert not plain.network.embed_tokens.weight.is_meta
    rounded = copy.deepcopy(network)
    round_in_place(rounded, WORDS[precision])
    loaded = plain.network.layers[0].mlp.down_proj.weight.float()
    assert torch.allclose(loaded, rounded.layers[0].mlp.down_proj.weight, rtol=2**-8)
    prompt = chatml.encode("Deep wells")
    with torch.no_grad():
        logits = rounded(torch.tensor([[*prompt, *answer.tokens]]))[0, len(prompt) - 1 : -1]
    best = logits.topk(2, dim=-1)
    clear = best.values[:, 0] - best.values[:, 1] > 0.1 * logits.std()
    assert clear.sum() > 8
    chosen = torch.tensor(answer.tokens)
    assert torch.equal(chosen[clear], best.indices[:, 0][clear])
    assert plain.generate("Deep wells", GREEDY)[0].tokens[:4] == answer.tokens[:4]


# ---- the library ----


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """What ``library`` finds when it looks for the first time."""

    def look(wish: str) -> Any:
        monkeypatch.setenv("DEEPWELL_NATIVE", wish)
        return native.library.__wrapped__()

    return look


def test_the_environment_chooses_the_build(fresh: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    assert fresh("off") is None
    generic = fresh("generic")
    assert generic.instructions == "generic"
    assert fresh("auto").instructions == ("avx2" if generic.suits and "avx2" in native.built() else "generic")
    with pytest.raises(UsageError, match="DEEPWELL_NATIVE is 'nonsense'"):
        fresh("nonsense")
    monkeypatch.setattr(native, "built", dict)
    assert fresh("auto") is None
    for wish in ("avx2", "generic"):
        with pytest.raises(UsageError, match="no such build"):
            fresh(wish)


def test_a_library_of_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class LargerOp(native.Op):
        _fields_ = (("more", native.ctypes.c_int64),)

    monkeypatch.setattr(native, "_STRUCTURES", (LargerOp, *native._STRUCTURES[1:]))
    (name, found), *_ = native.built().items()
    path = Path(found._library._name)
    assert name in path.name
    with pytest.raises(DeepwellError, match="built from other sources") as error:
        native.Library(path)
    assert "Install deepwell again" in (error.value.hint or "")


def test_a_file_that_is_no_library_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "_generic.so").write_text("no library")
    with pytest.raises(DeepwellError, match="cannot be loaded"):
        native.Library(tmp_path / "_generic.so")


# ---- threads and processes ----


def test_two_models_compute_at_once(network: Network, two_threads: None) -> None:
    """Both ask the same pool, each for its own steps."""
    asked = prompts(12, 60, seed=4)
    answers: dict[tuple[str, bool], list[list[int]]] = {}

    def write(name: str, together: bool) -> None:
        model = network(name)
        engine = Engine(model, cache_bytes=cache_bytes(model, 2000, "int8"), precision="int8")
        sequences = [engine.add(prompt, greedy(prompt), most=15) for prompt in asked]
        run(engine)
        answers[name, together] = [sequence.answer for sequence in sequences]

    names = ("grouped", "experts", "latent")
    for name in names:
        write(name, False)
    threads = [threading.Thread(target=write, args=(name, True)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(answers[name, True] == answers[name, False] for name in names)


def test_a_child_process_has_threads_of_its_own() -> None:
    script = """
    import os, torch
    from deepwell.lm.engine.native.library import Batch, library
    from deepwell.lm.engine.native.panels import panels
    from deepwell.lm.engine.native.program import Program, Rows

    rows = Rows(64)
    x, y = rows("x", 100), rows("y", 200)
    x.copy_(torch.randn(64, 100))
    program = Program(rows)
    program.linear(x, panels([torch.randn(200, 100)], "int8"), y)
    for _ in range(3):
        program.run(library(), Batch(rows=64, threads=3))
    wanted = bytes(y.numpy())
    children = []
    for _ in range(3):
        child = os.fork()
        if not child:
            y.numpy().fill(0)
            program.run(library(), Batch(rows=64, threads=4))
            os._exit(0 if bytes(y.numpy()) == wanted else 3)
        children.append(child)
        program.run(library(), Batch(rows=64, threads=3))
    assert all(os.waitpid(child, 0)[1] == 0 for child in children)
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
