"""Tile sizes of `pallas_tpu`'s kernels, by device, from static cycles (tools/tune_attention.py).

Compared for v5e and v6e in bfloat16, head size 64, 2,048 tokens; chips with equal matrix units take the same values.
"""

import dataclasses

from jaxbert.chips import CHIPS
from jaxbert.ops.platform import target


@dataclasses.dataclass(frozen=True)
class Tiles:
    """Sizes in tokens, multiples of 128. They are upper limits: the kernel takes what divides a row's length."""

    q_block: int = 512  # queries of a forward grid step
    k_chunk: int = 512  # keys that it takes at once where no mask is needed
    k_major: int = 8192  # keys that lie in VMEM
    k_block: int = 512  # keys of a backward grid step
    q_chunk: int = 512
    q_major: int = 8192
    width: int = 128  # queries of one product where no mask is needed: what a matrix unit is wide
    vmem: int = 64 * 2**20  # bytes that a kernel may take


_NARROW = Tiles(q_block=1024, k_chunk=1024, k_block=1024)  # matrix units of 128 × 128
_WIDE = Tiles(q_block=1024, k_chunk=1024, k_block=1024, width=256)
# (chip, bytes of a number). Head sizes 64 and 128 and all lengths share an entry: a block is 128 lanes of either, and
# one that is longer than its row is cut to it.
TILES = {
    ("v4", 2): Tiles(k_major=2048, q_major=2048, vmem=15 * 2**20),  # 16 MiB of VMEM, the others 64 and 128
    ("v4", 4): Tiles(256, 512, 2048, 256, 256, 1024, vmem=15 * 2**20),
    ("v5e", 2): _NARROW,
    ("v5p", 2): _NARROW,
    ("v6e", 2): _WIDE,
    ("tpu7x", 2): dataclasses.replace(_WIDE, q_major=4096, vmem=56 * 2**20),
}


def of_chip(name: str, itemsize: int) -> Tiles:
    """The table's entry for a chip (chips.CHIPS) and numbers of `itemsize` bytes; a default for others."""
    # What lies in VMEM is twice as large in float32, so majors are half as long; its products are six passes.
    return TILES.get((name, itemsize), Tiles() if itemsize == 2 else Tiles(k_major=4096, q_major=4096, vmem=56 * 2**20))


def chosen(itemsize: int) -> Tiles:
    """`of_chip` for the devices that are traced for."""
    return of_chip(next((chip.name for chip in CHIPS.values() if chip.kind == target().kind), ""), itemsize)
