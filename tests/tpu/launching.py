"""A folder to launch from, with a fake gcloud on PATH, and a fake trainer to launch."""

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
LAUNCH = HERE.parents[1] / "tpu" / "launch.py"
SLICE = ["--name=bert", "--accelerator=v5litepod-16", "--zone=us-west4-a"]
LOCAL = ["--name=bert", "--accelerator=local:2"]


class Cloud:
    """What a user has: a folder, gcloud, a bucket (`bucket`), and a command to run."""

    def __init__(self, folder: Path):
        self.folder, self.home, self.bucket = folder / "clone", folder / "cloud", folder / "bucket"
        for each in (self.folder / "configs", self.home, self.bucket, folder / "bin", folder / "site" / "pip"):
            each.mkdir(parents=True)
        (self.folder / "configs" / "own.py").write_text("# a recipe\n")
        self.program = folder / "bin" / "gcloud"
        self.program.write_text(
            f'#!/bin/sh\nFAKE_GCLOUD={self.home} exec {sys.executable} -ISE {HERE / "fake_gcloud.py"} "$@"\n'
        )
        self.program.chmod(0o755)
        # Building a wheel takes 20 s, and no test here looks into it: this pip makes the file alone.
        (folder / "site" / "pip" / "__init__.py").touch()
        (folder / "site" / "pip" / "__main__.py").write_text(
            "import sys, pathlib\n"
            "folder = next(word for word in sys.argv if word.startswith('--wheel-dir=')).partition('=')[2]\n"
            "pathlib.Path(folder, 'jaxbert-0.1.0-py3-none-any.whl').write_text('a wheel')\n"
        )
        self.environment = {
            **os.environ,
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            "PYTHONPATH": str(folder / "site"),
        }
        (self.home / "state.json").write_text(
            json.dumps({"slices": {}, "calls": [], "created": 0, "looks": 0, "ssh": 0})
        )
        self.fault()

    def fault(self, **faults):
        """What goes wrong from now on: FAULTS of fake_gcloud.py."""
        (self.home / "faults.json").write_text(json.dumps(faults))

    def train(self, codes="0", seconds=0.1):
        """The command."""
        return [sys.executable, "-SE", str(HERE / "fake_train.py"), str(self.bucket), str(seconds), codes]

    def start(self, *flags, command=None, slice=SLICE, **options):
        """Start the launcher."""
        command = command if command is not None else self.train()
        words = [sys.executable, str(LAUNCH), *flags, *slice, "--poll=0.2"]
        return subprocess.Popen(
            [*words, *(["--", *command] if command else [])],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # A shell's background jobs ignore SIGINT, and so would all that tests start there.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            **options,
        )

    def launch(self, *flags, command=None, slice=SLICE):
        """Run the launcher to its end: (exit code, stdout, stderr)."""
        process = self.start(*flags, command=command, slice=slice)
        out, err = process.communicate(timeout=300)
        return process.returncode, out, err

    @property
    def state(self):
        return json.loads((self.home / "state.json").read_text())

    def calls(self, verb):
        """The calls of one verb, such as "queued-resources create"."""
        return [shlex.join(call) for call in self.state["calls"] if " ".join(call[2:4]) == verb]

    def starts(self, number=0):
        """How often a worker started the command."""
        path = self.bucket / f"starts-{number}"
        return len(path.read_text().splitlines()) if path.exists() else 0
