"""Triton kernels of decoding attention over a paged cache; ``attention`` launches them.

A program takes one query, a tile of the heads that look at the same columns, and one split of the rows; it runs
through them once, tile by tile, with a running maximum (online softmax, arXiv 1805.02867). A second kernel joins the
splits (flash-decoding). A row is read once for scores and sum, because in the absorbed form a latent is key and value.
"""

import triton
import triton.language as tl


@triton.jit
def attend_split(
    latent_queries,  # [n, H, value] or unused
    rope_queries,  # [n, H, rope]
    rows,  # [slots, width] of one layer
    tables,  # [n, blocks] int32
    firsts,  # [n] int32, the first place that is looked at
    lengths,  # [n] int32, one behind the last
    out,  # [n, H, splits, value] float32, or [n, H, value] where there is one split
    sums,  # [n, H, splits] float32: log2 of the sum of exponentials
    scale,  # of the scores, times log2(e)
    latent_by_query,
    latent_by_head,
    rope_by_query,
    rope_by_head,
    rows_by_slot,
    tables_by_query,
    rank: tl.constexpr,  # columns before the rotary keys
    rope: tl.constexpr,
    value: tl.constexpr,
    value_step: tl.constexpr,  # columns from one group's values to the next one's; 0: all share them
    absorbed: tl.constexpr,  # whether what is summed is also scored
    heads_a_group: tl.constexpr,
    tiles_a_group: tl.constexpr,
    block_size: tl.constexpr,
    splits: tl.constexpr,
    head_tile: tl.constexpr,
    place_tile: tl.constexpr,
    value_tile: tl.constexpr,
    rope_tile: tl.constexpr,
    operand: tl.constexpr,  # the dtype in which tiles are multiplied; sums are float32
):
    query = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1) // tiles_a_group
    split = tl.program_id(2)
    heads = heads_a_group * (tl.num_programs(1) // tiles_a_group)

    head_in_group = tl.program_id(1) % tiles_a_group * head_tile + tl.arange(0, head_tile)
    is_head = head_in_group < heads_a_group
    head = group * heads_a_group + head_in_group
    value_column = tl.arange(0, value_tile)
    rope_column = tl.arange(0, rope_tile)
    is_value = value_column < value
    is_rope = rope_column < rope

    rope_query = tl.load(
        rope_queries + query * rope_by_query + head[:, None] * rope_by_head + rope_column,
        mask=is_head[:, None] & is_rope,
        other=0.0,
    ).to(operand)
    if absorbed:
        latent_query = tl.load(
            latent_queries + query * latent_by_query + head[:, None] * latent_by_head + value_column,
            mask=is_head[:, None] & is_value,
            other=0.0,
        ).to(operand)

    first = tl.load(firsts + query)
    length = tl.load(lengths + query)
    each = tl.cdiv(tl.cdiv(length - first, splits), place_tile) * place_tile
    begin = first + split * each
    end = tl.minimum(begin + each, length)

    largest = tl.full([head_tile], float("-inf"), tl.float32)
    total = tl.zeros([head_tile], tl.float32)
    summed = tl.zeros([head_tile, value_tile], tl.float32)
    for start in range(begin, end, place_tile):
        place = start + tl.arange(0, place_tile)
        inside = place < end
        block = tl.load(tables + query * tables_by_query + place // block_size, mask=inside, other=0)
        row = rows + (block.to(tl.int64) * block_size + place % block_size) * rows_by_slot
        values = tl.load(
            row[:, None] + group * value_step + value_column, mask=inside[:, None] & is_value, other=0.0
        ).to(operand)
        keys = tl.load(row[:, None] + rank + group * rope + rope_column, mask=inside[:, None] & is_rope, other=0.0).to(
            operand
        )
        scores = tl.dot(rope_query, tl.trans(keys), input_precision="ieee")
        if absorbed:
            scores = tl.dot(latent_query, tl.trans(values), scores, input_precision="ieee")
        scores = tl.where(inside, scores * scale, float("-inf"))
        peak = tl.maximum(largest, tl.max(scores, 1))
        shrink = tl.exp2(largest - peak)
        shares = tl.exp2(scores - peak[:, None])
        total = total * shrink + tl.sum(shares, 1)
        summed = tl.dot(shares.to(operand), values, summed * shrink[:, None], input_precision="ieee")
        largest = peak

    # A split without rows sums nothing, and its largest score of -inf gives it the weight 0 below.
    total = tl.where(total == 0, 1.0, total)
    summed = summed / total[:, None]
    place_out = ((query * heads + head) * splits + split)[:, None] * value + value_column
    tl.store(out + place_out, summed.to(out.dtype.element_ty), mask=is_head[:, None] & is_value)
    if splits > 1:
        tl.store(sums + (query * heads + head) * splits + split, largest + tl.log2(total), mask=is_head)


@triton.jit
def join_splits(
    parts,  # [n * H, splits, value] float32
    sums,  # [n * H, splits] float32
    out,  # [n * H, value]
    value: tl.constexpr,
    splits: tl.constexpr,
    value_tile: tl.constexpr,
):
    line = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, value_tile)
    largest = tl.load(sums + line * splits)  # the first split always has rows
    total = 1.0
    summed = tl.load(parts + line * splits * value + column, mask=column < value, other=0.0)
    for split in range(1, splits):
        one = tl.load(sums + line * splits + split)
        part = tl.load(parts + (line * splits + split) * value + column, mask=column < value, other=0.0)
        peak = tl.maximum(largest, one)
        shrink, share = tl.exp2(largest - peak), tl.exp2(one - peak)
        summed = summed * shrink + part * share
        total = total * shrink + share
        largest = peak
    tl.store(out + line * value + column, (summed / total).to(out.dtype.element_ty), mask=column < value)
