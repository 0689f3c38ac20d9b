# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
"""Tiles of rows that are sorted by expert, found by each program for itself: the host never learns who has how many."""

import triton
import triton.language as tl


def most_tiles(num_rows: int, num_experts: int, tile: int) -> int:
    """How many tiles the rows can make at most, since each expert's last may be short."""
    return num_rows // tile + min(num_experts, num_rows)


@triton.jit
def expert_of_tile(ends_ptr, tile, E, BLOCK_E: tl.constexpr, BLOCK_M: tl.constexpr):
    """The expert of a tile of BLOCK_M rows (E where there is no such tile), its first row, the end of the expert's."""
    e = tl.arange(0, BLOCK_E)
    ends = tl.load(ends_ptr + e, mask=e < E, other=0).to(tl.int32)
    starts = tl.load(ends_ptr + e - 1, mask=(e > 0) & (e < E), other=0).to(tl.int32)
    tiles = tl.where(e < E, tl.cdiv(ends - starts, BLOCK_M), 0)
    tiles_to = tl.cumsum(tiles, 0)
    expert = tl.sum((tiles_to <= tile).to(tl.int32), 0)
    mine = e == expert
    within = tile - tl.sum(tl.where(mine, tiles_to - tiles, 0), 0)
    start = tl.sum(tl.where(mine, starts, 0), 0) + within * BLOCK_M
    return expert, start, tl.sum(tl.where(mine, ends, 0), 0)
