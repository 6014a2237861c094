"""A network is filled tensor by tensor, and handed out only when it is whole."""

from collections.abc import Callable

import pytest
import torch

from deepwell.errors import ModelFileError
from deepwell.lm.model.transformer import Transformer
from deepwell.lm.weights.filling import Filling

Network = Callable[..., Transformer]
DOWN = "layers.1.mlp.experts.down_proj"


@pytest.fixture
def filling(network: Network) -> Filling:
    return Filling(network().config, dtype=torch.bfloat16)


def _fill(filling: Filling, model: Transformer, *, but: str = "") -> None:
    for name, tensor in model.state_dict().items():
        if name != but:
            filling.put(name, tensor, source="a file")


def test_a_filled_network_equals_the_one_it_came_from(network: Network) -> None:
    model = network()
    filling = Filling(model.config, dtype=torch.float32)
    assert set(filling.names) == set(model.state_dict())
    _fill(filling, model)
    filled = filling.finish(source="a file")
    tokens = torch.arange(20)[None]
    assert torch.equal(filled(tokens), model(tokens))
    assert not any(tensor.is_meta for tensor in [*filled.parameters(), *filled.buffers()])
    assert not filled.training


def test_values_take_the_networks_dtype_but_the_routers_bias_stays_float32(filling: Filling, network: Network) -> None:
    _fill(filling, network())
    filled = filling.finish(source="a file").state_dict()
    assert filled[DOWN].dtype == torch.bfloat16
    bias = "layers.1.mlp.gate.e_score_correction_bias"
    assert torch.equal(filled[bias], network().state_dict()[bias])


def test_experts_and_rows_may_come_in_any_order(filling: Filling, network: Network) -> None:
    model = network()
    _fill(filling, model, but=DOWN)
    source = model.state_dict()[DOWN]
    for expert in reversed(range(8)):
        for begin in (40, 0):
            rows = slice(begin, begin + (8 if begin else 40))
            filling.put(DOWN, source[expert, rows], source="a file", expert=expert, rows=rows)
    assert filling.missing() == ()
    assert torch.equal(filling.tensor(DOWN), source.bfloat16())
    assert filling.finish(source="a file") is not None


def test_what_is_missing_is_named(filling: Filling, network: Network) -> None:
    _fill(filling, network(), but=DOWN)
    assert filling.missing() == (DOWN,)
    for expert in range(7):
        filling.put(DOWN, torch.zeros(48, 40), source="a file", expert=expert)
    filling.put(DOWN, torch.zeros(8, 40), source="a file", expert=7, rows=slice(0, 8))
    with pytest.raises(ModelFileError, match=rf"a folder: .*{DOWN} \(expert 7, from row 8\)"):
        filling.finish(source="a folder")


def test_a_gap_between_rows_is_missing(filling: Filling) -> None:
    for rows in (slice(0, 10), slice(20, 97)):
        filling.put("lm_head.weight", torch.zeros(rows.stop - rows.start, 48), source="a file", rows=rows)
    assert "lm_head.weight (from row 10)" in filling.missing()


def test_many_missing_tensors_are_counted(filling: Filling) -> None:
    with pytest.raises(ModelFileError, match=r"and \d\d more"):
        filling.finish(source="a folder")


@pytest.mark.parametrize(
    ("name", "shape", "part", "told"),
    [
        ("norm.weight", (47,), {}, r"shape \[47\] does not fit norm.weight \[48\]"),
        ("norm.weight", (9,), {"rows": slice(40, 49)}, "rows 40 to 49"),
        ("no.such.weight", (48,), {}, "no tensor no.such.weight"),
        (DOWN, (48, 40), {"expert": 8}, "expert 8 of .*there are 8"),
        (DOWN, (40, 48), {"expert": 7}, r"\[40, 48\] does not fit"),
    ],
)
def test_what_does_not_fit_is_refused_with_file_and_tensor(
    filling: Filling, name: str, shape: tuple[int, ...], part: dict[str, object], told: str
) -> None:
    with pytest.raises(ModelFileError, match=f"shard 3: .*{told}"):
        filling.put(name, torch.zeros(shape), source="shard 3", **part)  # type: ignore[arg-type]
    assert name not in filling.names or name in filling.missing()


def test_twice_is_refused(filling: Filling) -> None:
    filling.put("norm.weight", torch.ones(30), source="one", rows=slice(0, 30))
    with pytest.raises(ModelFileError, match=r"two: norm\.weight is there twice"):
        filling.put("norm.weight", torch.ones(20), source="two", rows=slice(28, 48))
    filling.put(DOWN, torch.zeros(48, 40), source="one", expert=3)
    with pytest.raises(ModelFileError, match="twice"):
        filling.put(DOWN, torch.zeros(8, 48, 40), source="two")
    with pytest.raises(ModelFileError, match="twice"):
        filling.put(DOWN, torch.zeros(48, 40), source="two", expert=3)


def test_shapes_and_dtypes_are_known_before_anything_comes(filling: Filling) -> None:
    assert filling.shape(DOWN) == (8, 48, 40)
    assert filling.dtype(DOWN) == torch.bfloat16
    with pytest.raises(KeyError):
        filling.shape("no.such.weight")
