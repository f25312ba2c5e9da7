"""Memory that preparing a large corpus takes, against two gigabytes: python tools/bench_prepare_memory.py

Text is the kept documents of a prepared corpus (`--corpus`, by default the demo's: run `make demo` before), again and
again with every third word replaced by one drawn from the corpus, until there are `--gigabytes` of it, in JSON lines.
So nearly every document and line is another one, which is the worst case for what compares them. It is prepared with
two processes, near duplicates and boilerplate lines on, and without identifying languages, which takes most of the
time and a few megabytes. Memory is the sum over all processes of their proportional set size (pages that processes
share are counted once), read twice a second from /proc: Linux only.
"""

import argparse
import json
import random
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

from jaxbert.data import source

GOAL = 2e9  # bytes
STEP = 3  # one word of so many is replaced
RECIPE = """
from jaxbert.config import *

def get_config():
    clean = Clean(near_duplicates=0.8, boilerplate=1000, identify_language=False)
    return Config(
        corpus=Corpus(input=("{text}",), language="{language}", directory="{corpus}", clean=clean),
        tokenizer=Tokenizer(vocab_size=8192), train=Train(steps=1),
    )
"""


def write_text(corpus: Path, path: Path, size: int) -> None:
    """`size` bytes of documents, a JSON object a line."""
    texts = [d["text"].split(" ") for split in ("train", "validation") for d in source.read_documents(corpus, split)]
    words = [word for text in texts for word in text if "\n" not in word]
    choose, written = random.Random(0), 0
    with open(path, "w", encoding="utf-8") as file:
        while written < size:
            for text in texts:
                changed = list(text)
                start = choose.randrange(STEP)
                places = range(start, len(text), STEP)
                changed[start::STEP] = choose.choices(words, k=len(places))
                written += file.write(json.dumps({"text": " ".join(changed)}, ensure_ascii=False) + "\n")


def memory(process: int) -> int:
    """Bytes of a process and all that it started."""
    total, waiting = 0, [process]
    while waiting:
        folder = Path(f"/proc/{waiting.pop()}")
        try:
            rollup = (folder / "smaps_rollup").read_text()
            total += 1024 * next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
            waiting += map(int, (folder / "task" / folder.name / "children").read_text().split())
        except (OSError, StopIteration):  # it has ended
            continue
    return total


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", default="data/gl", type=Path, help="a prepared corpus")
    parser.add_argument("--gigabytes", default=2.0, type=float)
    parser.add_argument("--folder", default="data/bench/memory", type=Path, help="where text and result lie meanwhile")
    parser.add_argument("--json", type=Path)
    flags = parser.parse_args()
    shutil.rmtree(flags.folder, ignore_errors=True)
    flags.folder.mkdir(parents=True)
    text, result = flags.folder / "text.jsonl", flags.folder / "corpus"
    write_text(flags.corpus, text, int(flags.gigabytes * 1e9))
    language = json.loads((flags.corpus / "corpus.json").read_text())["recipe"]["corpus.language"]
    (flags.folder / "recipe.py").write_text(RECIPE.format(text=text, corpus=result, language=language))
    command = [sys.executable, "-u", "-m", "jaxbert.prepare", f"--config={flags.folder}/recipe.py", "--workers=2"]
    started, phase, most = time.monotonic(), "start", dict[str, tuple[float, float]]()  # bytes, when last seen
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def watch() -> None:
        nonlocal phase
        for line in process.stdout or ():
            phase = line.partition(":")[0] if ":" in line else phase
            print(line, end="", flush=True)

    threading.Thread(target=watch, daemon=True).start()
    while process.poll() is None:
        now = time.monotonic() - started
        most[phase] = max(memory(process.pid), most.get(phase, (0, 0))[0]), now
        time.sleep(0.5)
    if process.returncode:
        sys.exit(process.returncode)
    size, peak = text.stat().st_size, max(bytes for bytes, _ in most.values())
    print(f"\n{size / 1e9:.2f} GB of text in {time.monotonic() - started:,.0f} s")
    for name, (bytes, until) in most.items():
        print(f"{bytes / 1e6:7,.0f} MB  until {until:6,.0f} s  {name}")
    print(f"{peak / 1e6:7,.0f} MB  at most; goal {GOAL / 1e6:,.0f} MB")
    if flags.json:
        measure = {
            "name": "memory",
            "value": GOAL / peak,
            "unit": "goal / peak",
            "low": None,
            "high": None,
            "goal": 1.0,
        }
        flags.json.write_text(json.dumps({"measures": [measure]}, indent=1) + "\n")
    shutil.rmtree(flags.folder)


if __name__ == "__main__":
    main()
