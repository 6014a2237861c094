"""The paged cache: what was written is read, in place where blocks lie side by side."""

import torch

from deepwell.lm.engine.paged_cache import PagedCache
from deepwell.lm.model.config import ModelConfig


def _cache(blocks: int = 6) -> PagedCache:
    return PagedCache(ModelConfig.named("debug-moe"), blocks=blocks, block_size=4, dtype=torch.float32, mtp=True)


def test_rows_come_back_in_the_order_of_the_sequence() -> None:
    cache = _cache()
    rows = torch.randn(10, cache.rows.shape[2])
    for table in ([1, 2, 3], [4, 0, 2], [2, 1, 0]):
        cache.write(1, torch.tensor(cache.slots(table, 0, 10)), rows)
        assert torch.equal(cache.read(1, cache.reader(table, 10)), rows)
        assert torch.equal(cache.read(1, cache.reader(table, 3)), rows[:3])


def test_blocks_side_by_side_are_read_in_place() -> None:
    cache = _cache()
    reader = cache.reader([3, 4, 0], 8)
    assert reader == slice(12, 20)
    assert cache.read(0, reader).data_ptr() == cache.rows[0, 12].data_ptr()
    assert isinstance(cache.reader([3, 4, 0], 9), torch.Tensor)


def test_the_size_counts_every_layer_and_the_module_of_multi_token_prediction() -> None:
    config = ModelConfig.named("debug-moe")
    assert _cache().bytes == (config.num_hidden_layers + 1) * 24 * config.latent_width * 4
    without = PagedCache(config, blocks=6, block_size=4, dtype=torch.bfloat16)
    assert without.bytes == config.cache_bytes_per_token() * 24
