"""The recipes that come with Deepwell: each reads, and says what its source says."""

import math
import re
import tomllib
from importlib import resources
from pathlib import Path

import pytest

from deepwell.lm.model.accounting import Account
from deepwell.lm.model.config import ModelConfig
from deepwell.lm.training.reading import from_dict, read, shipped, to_dict, to_toml
from deepwell.lm.training.recipe import Recipe, value_at
from deepwell.lm.training.schedules import plan, sequences_at

NAMES = [name for name, _ in shipped()]


@pytest.fixture(autouse=True)
def _data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DEEPWELL_DATA", str(tmp_path))


def network(recipe: Recipe) -> ModelConfig:
    fields = {"vocab_size": recipe.tokenizer.vocab_size, **recipe.model.config}
    named = recipe.model.named
    return ModelConfig.named(named).replace(**fields) if named else ModelConfig(**fields)


def test_those_that_are_promised_are_there() -> None:
    assert {
        "esft-debug-moe", "pretrain-debug", "pretrain-tiny", "pretrain-v2-lite", "pretrain-v3", "sft-smollm2",
    } <= set(NAMES)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_reads_and_survives_being_written(name: str, tmp_path: Path) -> None:
    found = read(name)
    assert found.name == name
    assert found.base == Path.cwd()
    assert from_dict(to_dict(found.recipe), "here") == found.recipe
    copy = tmp_path / "copy.toml"
    copy.write_text(to_toml(found.recipe), encoding="utf-8")
    assert read(copy).recipe == found.recipe


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_teaches(name: str) -> None:
    text = resources.files("deepwell.recipes").joinpath(f"{name}.toml").read_text(encoding="utf-8")
    comments = [line for line in text.splitlines() if line.lstrip().startswith("#")]
    assert len(comments) >= 4
    assert max(map(len, text.splitlines())) <= 120
    assert tomllib.loads(text)["about"]


def test_tiny_is_what_its_comments_say() -> None:
    recipe = read("pretrain-tiny").recipe
    config = network(recipe)
    account = Account.of(config)
    assert (account.parameters + account.mtp_parameters) / 1e6 == pytest.approx(20.5, abs=0.05)
    assert account.active_parameters / 1e6 == pytest.approx(5.65, abs=0.05)
    assert config.kv_up_proj
    assert (config.scoring_func, config.topk_method) == ("sigmoid", "noaux_tc")
    assert config.topk_group < config.n_group
    assert (config.n_shared_experts, config.num_nextn_predict_layers) == (1, 1)
    assert config.latent_width == 64 + 32
    assert recipe.batch.tokens / 1200 < 45 * 60, "well under an hour at 1200 tokens a second, a core's share"
    text = resources.files("deepwell.recipes").joinpath("pretrain-tiny.toml").read_text(encoding="utf-8")
    assert re.search(r"Of 20\.5 million parameters a token uses 5\.7 million", text)


def test_v3_has_the_figures_of_its_report() -> None:
    """arXiv 2412.19437, sections 4.1 and 4.2."""
    recipe = read("pretrain-v3").recipe
    config = network(recipe)
    assert Account.of(config).parameters == Account.of(ModelConfig.named("deepseek-v3")).parameters
    assert config.initializer_range == 0.006
    assert config.rope_scaling is None
    optimizer = recipe.optimizer
    assert (optimizer.name, optimizer.betas, optimizer.weight_decay, optimizer.clip) == ("adamw", (0.9, 0.95), 0.1, 1.0)
    assert optimizer.lr == 2.2e-4
    assert optimizer.moments == "bf16"
    assert (recipe.data.sequence_length, recipe.data.fim_rate, recipe.data.mask_documents) == (4096, 0.1, False)
    assert recipe.batch.tokens == 14_800_000_000_000
    assert [sequences_at(recipe.batch, at) for at in (0, 0.0316, 0.0318, 1)] == [3072, 12288, 15360, 15360]
    assert recipe.batch.ramp[-1][0] == pytest.approx(469 / 14_800, abs=1e-4)
    assert recipe.balance.alpha == 1e-4
    for share, speed in ((0, 0.001), (14.29 / 14.8, 0.001), (14.31 / 14.8, 0), (0.999, 0)):
        assert value_at(recipe.balance.speed, share) == speed
    for share, weight in ((0, 0.3), (9.99 / 14.8, 0.3), (10.01 / 14.8, 0.1), (0.999, 0.1)):
        assert value_at(recipe.mtp.weight, share) == weight
    assert (recipe.precision.compute, recipe.precision.scaling) == ("fp8", "block")


def test_v3_learns_at_the_rates_of_its_report() -> None:
    """Warm-up of 2000 steps, 2.2e-4 to 10T tokens, a cosine to 2.2e-5 at 14.3T, 2.2e-5 for 333B, 7.3e-6 for 167B."""
    recipe = read("pretrain-v3").recipe
    laid = plan(recipe.batch, rows_per_epoch=10**10, row_tokens=4096)

    def rate(tokens: float) -> float:
        low, high = 1, laid.steps
        while low < high:
            middle = (low + high) // 2
            low, high = (middle + 1, high) if laid.share(middle) < tokens / 14.8 else (low, middle)
        return recipe.optimizer.lr * laid.learning_rate(recipe.schedule, low)

    assert recipe.optimizer.lr * laid.learning_rate(recipe.schedule, 1000) == pytest.approx(1.1e-4, rel=1e-3)
    assert recipe.optimizer.lr * laid.learning_rate(recipe.schedule, 2000) == pytest.approx(2.2e-4, rel=1e-6)
    assert rate(5) == rate(9.99) == 2.2e-4
    halfway = 2.2e-5 + (2.2e-4 - 2.2e-5) * (1 + math.cos(math.pi / 2)) / 2
    assert rate(12.15) == pytest.approx(halfway, rel=1e-3)
    assert rate(14.31) == rate(14.62) == pytest.approx(2.2e-5, rel=1e-3)
    assert rate(14.64) == rate(14.79) == pytest.approx(7.3e-6, rel=1e-3)


def test_v2_lite_has_the_figures_of_its_report() -> None:
    """arXiv 2405.04434, appendix B: 5.7T tokens, batches of 4608, 4.2e-4, times 0.316 at 80% and 90%."""
    recipe = read("pretrain-v2-lite").recipe
    laid = plan(recipe.batch, rows_per_epoch=10**10, row_tokens=4096)
    assert recipe.batch.tokens == 5_700_000_000_000
    assert recipe.batch.sequences == 4608

    def rate(share: float) -> float:
        return recipe.optimizer.lr * laid.learning_rate(recipe.schedule, round(share * laid.steps))

    assert rate(0.5) == rate(0.79) == 4.2e-4
    assert rate(0.81) == pytest.approx(4.2e-4 * 0.316)
    assert rate(0.91) == pytest.approx(4.2e-4 * 0.316**2, rel=1e-4)
    assert set(recipe.balance.speed) == {(0.0, 0.0)}


def test_fine_tuning_hides_packed_documents_from_each_other(tmp_path: Path) -> None:
    for name in ("sft-smollm2", "sft-smollm2-full", "esft-debug-moe"):
        recipe = read(name).recipe
        assert recipe.kind == "sft"
        assert recipe.data.pack
        assert recipe.data.mask_documents
        assert recipe.data.sources[0].path == f"{tmp_path}/math/gsm8k_train.jsonl"
    assert read("sft-smollm2").recipe.model.tune == "lora"
    assert read("esft-debug-moe").recipe.model.tune == "esft"
