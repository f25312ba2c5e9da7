"""Every encoder in a small configuration with no round size: what test_encoders.py and tests/convert run over.

A new encoder adds a row for each of its forms; the properties of the protocol are then tested for it.
"""

from jaxbert.config import Model
from jaxbert.models import bert, convbert, gmlp, hypermixer, m2

VOCABULARY = 150  # stored as 256 rows
POSITIONS = 40

SMALL: dict[str, Model] = {
    "bert": bert.Config("bert", 3, 24, num_heads=3, feed_forward_size=40, max_positions=POSITIONS),
    "convbert": convbert.Config(
        *("convbert", 3, 24),
        num_heads=4,
        groups=1,
        embedding_size=24,
        feed_forward_size=40,
        max_positions=POSITIONS,
    ),
    "convbert_grouped": convbert.Config(
        *("convbert", 3, 24),
        num_heads=6,
        kernel_size=5,
        groups=2,
        embedding_size=10,
        feed_forward_size=44,
        max_positions=POSITIONS,
    ),
    "gmlp": gmlp.Config("gmlp", 3, 24, feed_forward_size=40, attention_size=0, max_positions=POSITIONS),
    "gmlp_dense": gmlp.Config(
        "gmlp", 3, 24, feed_forward_size=40, attention_size=0, max_positions=POSITIONS, spatial="dense"
    ),
    "amlp": gmlp.Config(
        "amlp", 3, 24, feed_forward_size=40, attention_size=8, max_positions=POSITIONS, tied_head=False
    ),
    "m2": m2.Config(
        *("m2", 3, 24, POSITIONS), feed_forward_size=40, filter_order=11, filter_features=7, training_additions=False
    ),
    "m2_additions": m2.Config(
        *("m2", 3, 24, POSITIONS), feed_forward_size=40, filter_order=11, training_additions=True
    ),
    "hypermixer": hypermixer.Config(
        *("hypermixer", 3, 24),
        num_heads=3,
        hypernet_size=36,
        feed_forward_size=40,
        position_table="idiap",
        max_positions=POSITIONS,
    ),
    "hypermixer_tied": hypermixer.Config(
        *("hypermixer", 3, 24),
        num_heads=2,
        hypernet_size=30,
        feed_forward_size=40,
        tied=True,
        hypernet_bias=True,
        max_positions=POSITIONS,
    ),
}
