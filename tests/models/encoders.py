"""Every encoder in a small configuration with no round size: what test_encoders.py and tests/convert run over.

A new encoder adds a row for each of its forms; the properties of the protocol are then tested for it.
"""

from jaxbert.config import Model
from jaxbert.models import bert

VOCABULARY = 150  # stored as 256 rows
POSITIONS = 40

SMALL: dict[str, Model] = {
    "bert": bert.Config("bert", 3, 24, num_heads=3, feed_forward_size=40, max_positions=POSITIONS),
}
