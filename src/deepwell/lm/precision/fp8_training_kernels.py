"""The two Triton kernels of FP8 training; ``fp8_gpu`` launches them.

``round_tiles`` reads a block of 128 x 128 once and writes its FP8, one scale for each row or one for the block. It can
write the transpose: tensor cores multiply FP8 only along the dimension that lies together in memory, and the sum over
tokens (of the gradient of a weight) or over outputs (of the gradient of an input) runs across it.

``multiply_tiles`` multiplies two such matrices, ``left`` [N, depth] by ``right`` [M, depth], both along the depth. The
sum within 128 values is the tensor core's; then the scales of the two tiles multiply it, and it is added in float32
(V3 section 3.3.2: the promotion that Hopper's narrow sums need).
"""

import triton
import triton.language as tl

from deepwell.lm.precision.fp8 import LARGEST, SMALLEST_AMAX

_LARGEST = tl.constexpr(LARGEST)
_SMALLEST_AMAX = tl.constexpr(SMALLEST_AMAX)


@triton.jit
def round_tiles(  # noqa: PLR0912 - variants known when it is compiled
    x,  # [rows, columns]
    values,  # uint8: [rows, columns], or transposed [columns, tiles * 128]
    scales,  # float32: [rows, tiles across], transposed [columns, tiles]; of whole blocks [tiles, tiles across], turned
    tile_first,  # [tiles] int32: the first row of each tile of rows
    tile_end,  # [tiles] int32: one behind its last; no more than its first where the tile is not used
    columns,
    x_by_row,
    values_by_row,
    scales_by_row,
    transposed: tl.constexpr,
    whole: tl.constexpr,  # one scale for a block, not for each of its rows
    power_of_two: tl.constexpr,
    has_fp8: tl.constexpr,  # whether the GPU converts FP8 itself
    block: tl.constexpr,  # 128
):
    tile, across = tl.program_id(0), tl.program_id(1)
    first, end = tl.load(tile_first + tile), tl.load(tile_end + tile)
    row = first + tl.arange(0, block)
    column = across * block + tl.arange(0, block)
    inside = (row < end)[:, None] & (column < columns)
    found = tl.load(x + row.to(tl.int64)[:, None] * x_by_row + column, mask=inside, other=0.0).to(tl.float32)
    if transposed:
        found = tl.trans(found)
    size = tl.abs(found)
    strange = tl.where((size < float("inf")), 0, 1)
    if whole:
        amax = tl.max(tl.max(size, 1), 0)
        bad = tl.max(tl.max(strange, 1), 0)
    else:
        amax = tl.max(size, 1)
        bad = tl.max(strange, 1)
    scale = tl.div_rn(tl.maximum(amax, _SMALLEST_AMAX), _LARGEST)
    if power_of_two:
        scale = ((scale.to(tl.int32, bitcast=True) + 0x7FFFFF) & 0x7F800000).to(tl.float32, bitcast=True)
    scale = tl.where(bad > 0, float("nan"), scale)
    if whole:
        wide = tl.div_rn(found, scale + tl.zeros([block, block], tl.float32))
    else:
        wide = tl.div_rn(found, scale[:, None] + tl.zeros([block, block], tl.float32))
    if has_fp8:
        code = wide.to(tl.float8e4nv).to(tl.uint8, bitcast=True)
    else:
        bits = wide.to(tl.int32, bitcast=True)
        body = bits & 0x7FFFFFFF
        normal = ((body + 0x7FFFF + ((body >> 20) & 1)) >> 20) - 960
        # Beside 2^14, float32 counts in steps of 2^-9, as FP8 does below 2^-6.
        tiny = (tl.where(body < 0x3C800000, tl.abs(wide), 0.0) + 16384.0).to(tl.int32, bitcast=True) - 0x46800000
        code = tl.minimum(tl.where(body < 0x3C800000, tiny, normal), 0x7E)
        code = tl.where(body >= 0x7F800000, 0x7F, code)
        code = (code | ((bits >> 24) & 0x80)).to(tl.uint8)
    if transposed:
        place = tile * block + tl.arange(0, block)  # where groups of rows begin at whole tiles
        target = values + column.to(tl.int64)[:, None] * values_by_row + place
        tl.store(target, code, mask=(column < columns)[:, None] & (place < values_by_row))
        if whole:
            tl.store(scales + across * scales_by_row + tile, scale)
        else:
            tl.store(scales + column * scales_by_row + tile, scale, mask=column < columns)
    else:
        tl.store(values + row.to(tl.int64)[:, None] * values_by_row + column, code, mask=inside)
        if whole:
            tl.store(scales + tile * scales_by_row + across, scale)
        else:
            tl.store(scales + row * scales_by_row + across, scale, mask=row < end)


@triton.jit
def multiply_tiles(
    left,  # uint8 [rows, depth]
    left_scales,  # float32 [rows, steps]
    right,  # uint8 [columns, depth], for each group if groups share out the rows
    right_scales,  # float32 [blocks of columns, steps] or [columns, steps], likewise
    out,  # [rows, columns], or [groups, rows, columns]
    tile_first,  # [tiles] int32: the first row of each tile
    tile_end,  # [tiles] int32: one behind the last row of its group
    tile_group,  # [tiles] int32: its group; the number of groups where the tile is not used
    steps_end,  # [groups] int32: where each group's steps end, if groups share out the depth
    rows,
    columns,
    depth,
    groups,
    left_by_row,
    left_scales_by_row,
    right_by_row,
    right_by_group,
    right_scales_by_row,
    right_scales_by_group,
    by_depth: tl.constexpr,  # groups share out the depth, not the rows
    by_block: tl.constexpr,  # right has a scale for 128 columns, not for each
    has_fp8: tl.constexpr,  # whether tensor cores multiply FP8
    row_tile: tl.constexpr,
    column_tile: tl.constexpr,  # divides 128
    block: tl.constexpr,  # 128
    operand: tl.constexpr,  # without FP8, the dtype in which bare values are multiplied
):
    column = tl.program_id(1) * column_tile + tl.arange(0, column_tile)
    is_column = column < columns
    begin, stop = 0, tl.cdiv(depth, block)
    if by_depth:
        group = tl.program_id(2)
        first, end = tl.program_id(0) * row_tile, rows
        if group > 0:
            begin = tl.load(steps_end + group - 1)
        stop = tl.load(steps_end + group)
        out += group.to(tl.int64) * rows * columns
    else:
        group = tl.load(tile_group + tl.program_id(0))
        if group >= groups:
            return
        first, end = tl.load(tile_first + tl.program_id(0)), tl.load(tile_end + tl.program_id(0))
        right += group.to(tl.int64) * right_by_group
        right_scales += group * right_scales_by_group
    row = first + tl.arange(0, row_tile)
    is_row = row < end
    left_line = left + row.to(tl.int64)[:, None] * left_by_row
    right_line = right + column.to(tl.int64)[:, None] * right_by_row

    summed = tl.zeros([row_tile, column_tile], tl.float32)
    for step in range(begin, stop):
        place = step * block + tl.arange(0, block)
        inside = place < depth
        a = tl.load(left_line + place, mask=is_row[:, None] & inside, other=0)
        b = tl.load(right_line + place, mask=is_column[:, None] & inside, other=0)
        if has_fp8:
            part = tl.dot(a.to(tl.float8e4nv, bitcast=True), tl.trans(b.to(tl.float8e4nv, bitcast=True)))
        else:
            # Moved up by 7, the bits are a float16 that is 256 times too small.
            a_half = ((a.to(tl.uint16) & 0x7F) << 7 | (a.to(tl.uint16) & 0x80) << 8).to(tl.float16, bitcast=True)
            b_half = ((b.to(tl.uint16) & 0x7F) << 7 | (b.to(tl.uint16) & 0x80) << 8).to(tl.float16, bitcast=True)
            a_bare, b_bare = (a_half * 256.0).to(operand), (b_half * 256.0).to(operand)
            part = tl.dot(a_bare, tl.trans(b_bare), input_precision="ieee")
        a_scale = tl.load(left_scales + row * left_scales_by_row + step, mask=is_row, other=0.0)
        if by_block:
            b_scale = tl.load(right_scales + tl.program_id(1) * column_tile // block * right_scales_by_row + step)
            summed += part * (a_scale * b_scale)[:, None]
        else:
            b_scale = tl.load(right_scales + column * right_scales_by_row + step, mask=is_column, other=0.0)
            summed += part * a_scale[:, None] * b_scale[None, :]
    target = out + row.to(tl.int64)[:, None] * columns + column
    tl.store(target, summed.to(out.dtype.element_ty), mask=is_row[:, None] & is_column)
