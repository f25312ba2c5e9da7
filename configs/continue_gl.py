"""Two phases in one run: Galician software help in short rows, then longer rows that lean towards statistics programs.

    python -m jaxbert.prepare --config=configs/continue_gl.py       # data/gl, as configs/demo_gl.py makes it, and rows
    python -m jaxbert.train   --config=configs/continue_gl.py --workdir=runs/continue
    python -m jaxbert.prepare --config=configs/continue_gl.py --trace=rows_128:17

The first four fifths read rows_128 as the corpus is, 32 rows a step; the rest reads rows of 512 tokens, 8 a step, in
which each document of two statistics packages is four times (rows_512-<hash of the weights>). Both are made from the
same tokens, so nothing is prepared twice. wsd, because its rate before the decay does not depend on the length: such a
run may be prolonged with --config.train.phases.0.until=1280 --config.train.steps=MORE.
"""

import dataclasses
import runpy
from pathlib import Path

from jaxbert.config import Config, Phase, Schedule, Weight

STATISTICS = ("gretl-common", "rkward-data")


def get_config() -> Config:
    demo = runpy.run_path(str(Path(__file__).with_name("demo_gl.py")))["get_config"]()
    phases = Phase(until=0.8), Phase(row_length=512, weights=tuple(Weight(name, 4.0) for name in STATISTICS))
    return dataclasses.replace(
        demo,
        model=dataclasses.replace(demo.model, max_positions=512),
        train=dataclasses.replace(demo.train, phases=phases),
        schedule=Schedule(name="wsd", warmup=0.1, decay=0.2),
    )
