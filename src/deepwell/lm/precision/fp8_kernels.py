"""The Triton kernel of products with FP8 weights; ``fp8_products`` launches it.

A program makes a tile of the result. It goes through the depth in steps of one block of scales, 128: within a block all
weights have one scale, so the product is taken with the bare FP8 values, which bf16 and f16 hold exactly, and the scale
multiplies its float32 sum. No weight is ever rounded again, and only its 8 bits are read from memory.
"""

import triton
import triton.language as tl


@triton.jit
def multiply_blocks(
    x,  # [n, depth]
    weights,  # [groups, columns, depth] uint8, the bits of float8_e4m3fn
    scales,  # [groups, blocks of columns, blocks of depth] float32
    bias,  # [columns] or unused
    out,  # [n, columns]
    tile_group,  # [tiles] int32, where rows are grouped: the group of each tile of rows, or the count of groups
    tile_first,  # [tiles] int32: its first row
    ends,  # [groups] int32: one behind the last row of each group
    rows,
    columns,
    depth,
    groups,
    x_by_row,
    scale_columns,
    scale_depth,
    grouped: tl.constexpr,
    has_bias: tl.constexpr,
    has_fp8: tl.constexpr,  # whether the GPU converts FP8 itself
    row_tile: tl.constexpr,
    column_tile: tl.constexpr,  # divides 128
    block: tl.constexpr,  # 128
    operand: tl.constexpr,  # the dtype in which tiles are multiplied; sums are float32
):
    first = tl.program_id(1) * row_tile
    end = rows
    if grouped:
        group = tl.load(tile_group + tl.program_id(1))
        if group >= groups:
            return
        first = tl.load(tile_first + tl.program_id(1))
        end = tl.load(ends + group)
        weights += group.to(tl.int64) * columns * depth
        scales += group * scale_columns * scale_depth
    row = first + tl.arange(0, row_tile)
    column = tl.program_id(0) * column_tile + tl.arange(0, column_tile)
    is_row, is_column = row < end, column < columns
    line = weights + column.to(tl.int64) * depth
    scale_line = scales + tl.program_id(0) * column_tile // block * scale_depth

    summed = tl.zeros([row_tile, column_tile], tl.float32)
    for step in range(0, tl.cdiv(depth, block)):
        place = step * block + tl.arange(0, block)
        inside = place < depth
        values = tl.load(x + row.to(tl.int64)[:, None] * x_by_row + place, mask=is_row[:, None] & inside, other=0.0).to(
            operand
        )
        bits = tl.load(line[:, None] + place, mask=is_column[:, None] & inside, other=0)
        if has_fp8:
            bare = bits.to(tl.float8e4nv, bitcast=True).to(operand)
        else:
            # Moved up by 7, the bits are a float16 that is 256 times too small.
            wide = bits.to(tl.uint16)
            half = (((wide & 0x7F) << 7) | ((wide & 0x80) << 8)).to(tl.float16, bitcast=True)
            bare = (half * 256.0).to(operand)
        product = tl.dot(values, tl.trans(bare), input_precision="ieee")
        summed += product * tl.load(scale_line + step)
    if has_bias:
        summed += tl.load(bias + column, mask=is_column, other=0.0).to(tl.float32)
    place_out = row.to(tl.int64)[:, None] * columns + column
    tl.store(out + place_out, summed.to(out.dtype.element_ty), mask=is_row[:, None] & is_column)
