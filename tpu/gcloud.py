"""Command lines of gcloud, what its errors mean, and a TPU slice behind them.

Syntax as in gcloud 528 and
https://cloud.google.com/sdk/gcloud/reference/compute/tpus/queued-resources/{create,describe,delete} and
https://cloud.google.com/sdk/gcloud/reference/compute/tpus/tpu-vm/{describe,ssh,scp}. What shapes this file:

- A queued resource and its node have the slice's one name, so that creating twice fails (ALREADY_EXISTS) and does not
  double.
- `ssh --command` joins its words by blanks and the worker's shell splits them again: one string, quoted for that shell.
- `ssh --worker=all` exits with a failed worker's code after all have run, and the others' output is there all the same;
  ssh's own failures are tried again by gcloud, 10 times 5 s apart.
- `scp` to several workers wants the key in the ssh-agent, or ends with "SSH Key is not present in the SSH agent".
- A spot slice that was taken away is SUSPENDED for good: it is deleted and requested anew.
"""

import dataclasses
import json
import re
import shlex
import subprocess
from pathlib import Path

from jaxbert.errors import BadInput
from tpu import bundle
from tpu.reconcile import Node, Slice, Worker

RUNTIMES = {  # https://cloud.google.com/tpu/docs/runtimes; by the accelerator's first word
    "v6e": "v2-alpha-tpuv6e",
    "v5p": "v2-alpha-tpuv5",
    "v5litepod": "v2-alpha-tpuv5-lite",
    "v4": "tpu-ubuntu2204-base",
    "v3": "tpu-ubuntu2204-base",
    "v2": "tpu-ubuntu2204-base",
}
CORES = {"v2", "v3", "v4", "v5p"}  # whose -N counts TensorCores, two a chip; the others' counts chips
STATUS = {
    3: "INVALID_ARGUMENT",
    5: "NOT_FOUND",
    7: "PERMISSION_DENIED",
    8: "RESOURCE_EXHAUSTED",
    9: "FAILED_PRECONDITION",
}
AGENT = f"python3 {bundle.FOLDER}/worker.py"

REMEDIES = (  # what gcloud says → what to do; the first that fits
    (
        "active account|gcloud auth login|[Rr]eauthentication|invalid_grant",
        "gcloud is not logged in: gcloud auth login",
    ),
    (r"attribute \[project\]|core/project", "no project: give --project=…, or gcloud config set project …"),
    (
        "SERVICE_DISABLED|has not been used in project|API .*not enabled",
        "the TPU API is off: gcloud services enable tpu.googleapis.com",
    ),
    ("[Qq]uota", "no quota for this in this zone: IAM & Admin → Quotas, or another --accelerator or --zone"),
    (
        "PERMISSION_DENIED|does not have permission",
        "this account may not: it needs the roles TPU Admin and Service Account User",
    ),
    (
        "SSH Key is not present",
        'scp to several workers needs the key in an agent: eval "$(ssh-agent)" && ssh-add ~/.ssh/google_compute_engine',
    ),
    (
        "INVALID_ARGUMENT|unrecognized arguments|Must be specified|Invalid value",
        "gcloud refused a value: compare with gcloud compute tpus accelerator-types list --zone=…, and "
        "gcloud compute tpus tpu-vm versions list --zone=…",
    ),
)
PASSING = (
    "UNAVAILABLE|DEADLINE_EXCEEDED|INTERNAL|ABORTED|RESOURCE_EXHAUSTED|no more capacity|HttpError.*5\\d\\d|timed out|"
    "[Cc]onnection|resolve|has (terminal )?state"
)


class Passing(Exception):
    """A failure of the service, the network or a worker that the next try may not meet."""


def chips(accelerator: str) -> int:
    """Chips of a slice: v5litepod-16 has 16, v4-16 has 8. Raises BadInput for a name of another form."""
    family, _, count = accelerator.partition("-")
    if family not in RUNTIMES or not count.isdigit():
        known = ", ".join(f"{name}-N" for name in RUNTIMES)
        raise BadInput(f"--accelerator={accelerator}: give {known} or local:N")
    return int(count) // 2 if family in CORES else int(count)


def call(command: list[str]) -> str:
    """Run gcloud, return its stdout. Raises BadInput with a remedy, or Passing; NOT_FOUND is BadInput, too."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    except FileNotFoundError:
        raise BadInput("gcloud is not on PATH: https://cloud.google.com/sdk/docs/install") from None
    if done.returncode:
        raise meaning(command, done.stderr)
    return done.stdout


def meaning(command: list[str], stderr: str) -> Exception:
    """The exception for what gcloud said; what a worker said through ssh is Passing, and another look tells."""
    own = stderr[found.start() :].strip() if (found := re.search(r"ERROR: \(gcloud", stderr)) else ""
    for pattern, remedy in REMEDIES:
        if re.search(pattern, own):
            return BadInput(f"{remedy}\n{own}")
    if {"ssh", "scp"} & set(command[:5]):
        return Passing(own or stderr.strip()[-500:])
    if re.search(PASSING, own):
        return Passing(own)
    return BadInput(f"{shlex.join(command)}\n{own or stderr.strip()}")


def _absent(error: BadInput) -> bool:
    return re.search("NOT_FOUND|was not found", str(error)) is not None


@dataclasses.dataclass(frozen=True)
class Tpu:
    """A slice of Cloud TPUs, reached through gcloud. Methods raise BadInput with a remedy, or Passing."""

    name: str
    accelerator: str
    zone: str
    project: str = ""
    spot: bool = False
    runtime_version: str = ""
    create_flags: tuple[str, ...] = ()
    ssh_flags: tuple[str, ...] = ()  # of ssh and scp, such as --internal-ip
    python: str = "3.11"  # of the environment that is made on the workers
    packages: tuple[str, ...] = ()  # besides jaxbert

    def _gcloud(self, group: str, verb: str, *arguments: str) -> list[str]:
        where = [f"--zone={self.zone}", *([f"--project={self.project}"] if self.project else [])]
        return ["gcloud", "compute", "tpus", group, verb, *arguments, *where, "--quiet"]

    def create_command(self) -> list[str]:
        """The request; its node has its name."""
        version = self.runtime_version or RUNTIMES[self.accelerator.partition("-")[0]]
        kind = [f"--node-id={self.name}", f"--accelerator-type={self.accelerator}", f"--runtime-version={version}"]
        spot = ["--spot"] if self.spot else []
        return self._gcloud("queued-resources", "create", self.name, *kind, *spot, *self.create_flags)

    def slice_command(self) -> list[str]:
        """What became of the request."""
        return self._gcloud("queued-resources", "describe", self.name, "--format=json")

    def node_command(self) -> list[str]:
        """Its machines."""
        return self._gcloud("tpu-vm", "describe", self.name, "--format=json")

    def delete_command(self) -> list[str]:
        """Request and machines."""
        return self._gcloud("queued-resources", "delete", self.name, "--force", "--async")

    def copy_command(self, folder: Path) -> list[str]:
        """`folder` into the home of each worker; interrupted, it is torn until it is copied again."""
        return self._gcloud("tpu-vm", "scp", "--recurse", str(folder), f"{self.name}:", "--worker=all", *self.ssh_flags)

    def ssh_command(self, shell: str = "", worker: str = "all") -> list[str]:
        """A shell's line on workers; without one, an interactive shell."""
        line = [f"--command={shell}"] if shell else []
        return self._gcloud("tpu-vm", "ssh", self.name, f"--worker={worker}", *line, *self.ssh_flags)

    def install_line(self) -> str:
        """An environment with jaxbert and the versions of constraints.txt. uv: images' own Python may be older.

        The lock: a launcher that was killed may have left an installation under way. jax[tpu] brings the libtpu that
        its jax was made with, and requests, by which jax reads the cluster's metadata.
        """
        wheel = f"{bundle.FOLDER}/{bundle.wheel_name()}[tpu]"
        packages = " ".join(f'"{package}"' for package in (wheel, "jax[tpu]", *self.packages))
        steps = (
            "python3 -m pip install --quiet --user uv",
            f".local/bin/uv venv --quiet --clear --python={self.python} jaxbert/venv",
            ".local/bin/uv pip install --quiet --python=jaxbert/venv/bin/python "
            f"--constraint={bundle.FOLDER}/constraints.txt {packages}",
            f"{AGENT} installed",
        )
        return f"(flock 9 && {' && '.join(steps)}) 9>jaxbert-install.lock"

    def report_line(self) -> str:
        """One line of JSON from each worker, {} where nothing was copied yet."""
        return f"test -e {bundle.FOLDER}/worker.py && {AGENT} report || echo {{}}"

    def start_line(self, attempt: int, command: list[str]) -> str:
        """Starts an attempt where it has not started."""
        return f"{AGENT} start --attempt={attempt} -- {shlex.join(command)}"

    def end_command(self, verb: str) -> list[str]:
        """Ends the attempt; `verb`: stop (for good) or halt."""
        return self.ssh_command(f"{AGENT} {verb}")

    def log_command(self, worker: int, begin: int, follow: bool) -> list[str]:
        """Prints a worker's log from byte `begin` on."""
        return self.ssh_command(f"{AGENT} log --from={begin}" + (" --follow" if follow else ""), str(worker))

    def look(self) -> Slice:
        """The slice, from its two descriptions."""
        try:
            request = json.loads(call(self.slice_command()))
            state = request.get("state", {})
            if state.get("state") != "ACTIVE":
                problem = state.get("failedData", {}).get("error", {})
                error = f"{STATUS.get(problem.get('code'), '')} {problem.get('message', '')}".strip()
                return Slice(state.get("state", "STATE_UNSPECIFIED"), error=error)
        except BadInput as error:
            if _absent(error):
                return Slice()
            raise
        try:
            node = json.loads(call(self.node_command()))
        except BadInput as error:
            if _absent(error):
                return Slice("ACTIVE")
            raise
        count, kind = len(node.get("networkEndpoints", ())), node.get("acceleratorType", "")
        return Slice("ACTIVE", Node(node.get("state", "UNKNOWN"), count, node.get("createTime", ""), kind))

    def workers(self) -> tuple[Worker, ...]:
        """Those that answer, by number. Their silence is not an error here: the launcher waits for them."""
        command = self.ssh_command(self.report_line())
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        found = [worker for line in done.stdout.splitlines() if (worker := Worker.read(line))]
        if done.returncode and isinstance(error := meaning(command, done.stderr), BadInput):
            raise error
        return tuple(sorted(found, key=lambda worker: worker.number))

    def create(self) -> None:
        """Request the slice; one that is there already is as good."""
        try:
            call(self.create_command())
        except BadInput as error:
            if "ALREADY_EXISTS" not in str(error):
                raise

    def delete(self) -> None:
        """Give up the slice; one that is gone is as good."""
        try:
            call(self.delete_command())
        except BadInput as error:
            if not _absent(error):
                raise

    def copy(self, folder: Path) -> None:
        """The bundle onto all workers."""
        call(self.copy_command(folder))

    def install(self) -> None:
        """What the bundle needs, on all workers."""
        call(self.ssh_command(self.install_line()))

    def start(self, attempt: int, command: list[str]) -> None:
        """An attempt on all workers."""
        call(self.ssh_command(self.start_line(attempt, command)))

    def end(self, verb: str) -> None:
        """The attempt on all workers; `verb`: stop (for good) or halt."""
        call(self.end_command(verb))

    def read_log(self, worker: int, begin: int, follow: bool) -> subprocess.Popen[bytes]:
        """A process that prints a worker's log, in a group of its own."""
        return subprocess.Popen(
            self.log_command(worker, begin, follow),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def shell(self, worker: int, command: list[str]) -> int:
        """An interactive shell, or a command, on one worker; its exit code."""
        return subprocess.run(self.ssh_command(shlex.join(command), str(worker))).returncode
