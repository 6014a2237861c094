"""``deepwell models inspect``."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.shell_completion import ShellComplete

from deepwell.cli.model_files import counted
from deepwell.cli.models import models
from deepwell.lm.model.config import ModelConfig
from deepwell.lm.model.transformer import Transformer
from deepwell.lm.weights.writing import write_checkpoint


def test_a_shape_is_shown_as_facts_and_rows(deepwell: Callable[..., Any]) -> None:
    ran = deepwell("models", "inspect", "deepseek-v3")
    assert ran.code == 0
    rows = {line.split("\t")[0]: line.split("\t")[1:] for line in ran.out.splitlines()}
    assert rows["parameters"] == ["671.0B, 36.6B active for a token, and 11.6B for multi-token prediction"]
    assert "70,272 B a token" in rows["cache"][0] and "56.9 times" in rows["cache"][0]
    assert rows["compute"][0].startswith("93.7 GFLOPs for a token that sees 4,096")
    assert rows["0-2"][0] == "dense" and rows["3-60"][0] == "experts" and rows["61"][0] == "mtp"
    assert rows["routed experts"] == ["653.9B", "1307.8 GB"]


def test_json_has_every_figure(deepwell: Callable[..., Any]) -> None:
    shown = json.loads(deepwell("models", "inspect", "debug-moe", "--context", "7", "--json").out)
    assert (
        shown["parameters"]["all"]
        == sum(shown["parameters"]["by_part"].values()) - (shown["parameters"]["multi_token_prediction"])
    )
    assert shown["cache_bytes_per_token"] == {"latent": 768, "plain": 4096, "grouped": None}
    assert shown["flops_per_token"]["context"] == 7
    assert [layer["layer"] for layer in shown["layers"]] == [0, 1, 2, 3, 4]
    assert shown["bytes"]["all"] == sum(shown["bytes"]["by_part"].values())
    assert shown["config"]["model_type"] == "deepseek_v3"


def test_a_terminal_gets_tables(deepwell: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    import deepwell.cli.model_files as shown

    class Terminal:
        class stdout:  # noqa: N801
            isatty = staticmethod(lambda: True)

    monkeypatch.setattr(shown, "sys", Terminal)
    monkeypatch.setenv("COLUMNS", "80")
    out = deepwell("models", "inspect", "deepseek-v3").out
    assert "layers  kind" in out
    assert "…" not in out  # every column fits a narrow terminal
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nonsense"], 2, "no model named 'nonsense'"),
        (["./nowhere"], 1, "there is no model at nowhere"),
        (["debug", "--context", "0"], 2, "a context of 0 tokens"),
        (["debug", "--context", "many"], 2, "'many' is not a valid integer"),
        ([], 2, "Missing argument 'NAME'"),
    ],
)
def test_bad_input_is_one_message(deepwell: Callable[..., Any], arguments: list[str], code: int, message: str) -> None:
    ran = deepwell("models", "inspect", *arguments)
    assert (ran.code, ran.out) == (code, "")
    assert message in ran.err and "Traceback" not in ran.err


def test_names_of_shapes_and_files_are_completed() -> None:
    def offered(incomplete: str) -> list[str]:
        complete = ShellComplete(models, {}, "models", "_COMPLETE")
        return [item.value for item in complete.get_completions(["inspect"], incomplete)]

    assert offered("deepseek-v") == ["deepseek-v2-lite", "deepseek-v2", "deepseek-v3"]
    complete = ShellComplete(models, {}, "models", "_COMPLETE")
    (item,) = complete.get_completions(["inspect"], "./fol")
    assert (item.value, item.type) == ("./fol", "file")


def test_the_group_lists_commands_that_it_has_not_imported() -> None:
    from click.testing import CliRunner

    shown = CliRunner().invoke(models, ["--help"]).output
    assert "inspect" in shown and "pull" in shown


def test_counts_are_written_as_people_do() -> None:
    assert [counted(n) for n in (576, 35_136, 134_515_008, 671.03e9, 2e12)] == [
        "576",
        "35.1k",
        "134.5M",
        "671.0B",
        "2.0T",
    ]
    assert counted(93.7e9, " ") + "FLOPs" == "93.7 GFLOPs"


def test_rounding_is_shown_by_part_and_for_the_worst(deepwell: Callable[..., Any], tmp_path: Path) -> None:
    with torch.random.fork_rng():
        write_checkpoint(Transformer(ModelConfig.named("debug-moe")), tmp_path / "model")
    ran = deepwell("models", "inspect", str(tmp_path / "model"), "--quantise", "int4")
    lines = [line.split("\t") for line in ran.out.splitlines()]
    (fact,) = (line[1] for line in lines if line[0] == "as int4")
    assert "an error of" in fact and fact.endswith("dB")
    table = lines[lines.index(["rounded", "bits", "bytes", "error", "SNR dB"]) :]
    assert [(row[0], row[1]) for row in table[1:4]] == [
        ("attention", "4"),
        ("feed-forward", "4"),
        ("routed experts", "4"),
    ]
    assert table[-6] == ["worst", "bits", "error", "SNR dB"]
    assert all(row[1] == "4" and row[2].endswith("%") for row in table[-5:])

    ran = deepwell("models", "inspect", str(tmp_path / "model"), "--quantise", "int8", "--json")
    quantised = json.loads(ran.out)["quantised"]
    assert quantised["bits"] == 8 and len(quantised["worst"]) == 5
    assert 35 < quantised["snr_db"] < 50 and quantised["by_part"]["head"]["relative_error"] < 0.01


def test_rounding_wants_weights_and_known_words(deepwell: Callable[..., Any]) -> None:
    ran = deepwell("models", "inspect", "deepseek-v3", "--quantise", "int8")
    assert ran.code == 2 and "deepseek-v3 is a shape" in ran.err
    ran = deepwell("models", "inspect", "deepseek-v3", "--quantise", "int3")
    assert ran.code == 2 and "'int3' is not one of" in ran.err
