"""A stand-in for jaxbert.train: fake_train.py FOLDER SECONDS,SECONDS,… CODE,CODE,…: the n-th start on a worker lasts
the n-th time and ends with the n-th code, the last ones again and again. FOLDER, like a bucket, outlives the machines:
each start adds a line to it.
"""

import os
import signal
import sys
import time
from pathlib import Path


def main():
    folder, seconds, codes = Path(sys.argv[1]), sys.argv[2].split(","), sys.argv[3].split(",")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    number = next((word.partition("=")[2] for word in sys.argv if word.startswith("--process=")), None)
    number = number or os.environ["JAXBERT_WORKER"]
    with open(folder / f"starts-{number}", "a+") as file:
        file.write(f"{os.getpid()} {' '.join(sys.argv[4:])}\n")
        file.flush()
        file.seek(0)
        starts = len(file.readlines())
    print(f"worker {number}, start {starts}", flush=True)
    time.sleep(float(seconds[min(starts, len(seconds)) - 1]))
    code = int(codes[min(starts, len(codes)) - 1])
    print(f"worker {number} ends with {code}", flush=True)
    if code < 0:
        os.kill(os.getpid(), -code)
    sys.exit(code)


main()
