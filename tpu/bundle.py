"""What the workers get: one folder with the wheel, pinned versions, worker.py, and the files that the command reads.

Its id is a hash of sources, not of the wheel (whose bytes depend on the tool that made it): the same tree gives the
same id, so a launcher that is started again need not build.
"""

import hashlib
import importlib.metadata
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

from jaxbert.errors import BadInput
from tpu import worker

SOURCE = Path(__file__).resolve().parents[1]
FOLDER = "jaxbert-bundle"  # its name here and on the workers


def pins() -> dict[str, str]:
    """Versions in this environment of what jaxbert needs, and of what that needs: what was tried here runs there.

    libtpu is not among them: jax[tpu] names the one that belongs to its jax. Packages that are not installed here are
    left out; workers then take the newest.
    """
    project = tomllib.loads((SOURCE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    todo, found = list(project["dependencies"]), {}
    while todo:
        requirement = todo.pop()
        name = re.match(r"[\w.-]+", requirement)[0].lower().replace("_", "-")
        if name in found or re.search(r"\bextra\b", requirement):
            continue
        try:
            here = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        found[name] = here.version
        todo += here.requires or []
    return {name: version for name, version in sorted(found.items()) if "+" not in version}


def constraints() -> str:
    """The pins, as pip and uv read them."""
    return "".join(f"{name}=={version}\n" for name, version in pins().items())


def _files(paths: list[str]) -> dict[str, Path]:
    """Files by the place that they get on the workers, folders opened. Raises BadInput for an absent one."""
    found: dict[str, Path] = {}
    for name in paths:
        path = Path(name)
        if path.is_absolute() or ".." in path.parts:
            raise BadInput(f"--copy={name}: give a path below this folder; it gets the same place on the workers")
        if not path.exists():
            raise BadInput(f"--copy={name}: there is no such file or folder")
        inside = sorted(path.rglob("*")) if path.is_dir() else [path]
        found |= {each.as_posix(): each for each in inside if each.is_file() and "__pycache__" not in each.parts}
    return found


def identity(copies: list[str]) -> str:
    """The id of the bundle that `build` would make now."""
    ours = {f"jaxbert/{p.relative_to(SOURCE / 'jaxbert')}": p for p in (SOURCE / "jaxbert").rglob("*.py")}
    ours |= {"pyproject.toml": SOURCE / "pyproject.toml", "worker.py": SOURCE / "tpu" / "worker.py"}
    ours |= {f"files/{place}": path for place, path in _files(copies).items()}
    listed = {place: worker.sha256(path) for place, path in sorted(ours.items())}
    return hashlib.sha256(json.dumps([listed, constraints()]).encode()).hexdigest()[:12]


def wheel_command(parent: Path) -> list[str]:
    """Builds jaxbert's wheel from `parent`/source into `parent`/jaxbert-bundle."""
    quiet = ["--quiet", "--no-deps"]
    return [sys.executable, "-m", "pip", "wheel", *quiet, f"--wheel-dir={parent / FOLDER}", str(parent / "source")]


def wheel_name() -> str:
    """The file that `wheel_command` makes."""
    namespace: dict[str, str] = {}
    exec((SOURCE / "jaxbert" / "__init__.py").read_text(encoding="utf-8"), namespace)
    return f"jaxbert-{namespace['__version__']}-py3-none-any.whl"


def build(parent: Path, copies: list[str]) -> Path:
    """Make `parent`/jaxbert-bundle, or keep it where it is that of these sources. Raises BadInput without pip."""
    folder, wanted = parent / FOLDER, identity(copies)
    manifest = folder / "MANIFEST.json"
    if manifest.exists() and json.loads(manifest.read_text())["id"] == wanted:
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "files").mkdir(parents=True)
    source = parent / "source"  # a copy: setuptools would leave build/ in the clone, and take old files from there
    shutil.rmtree(source, ignore_errors=True)
    shutil.copytree(SOURCE / "jaxbert", source / "jaxbert", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(SOURCE / name, source)
    made = subprocess.run(wheel_command(parent), capture_output=True, text=True)
    if made.returncode:
        what = made.stderr.strip().splitlines()[-1:] or ["no message"]
        raise BadInput(f"the wheel of jaxbert could not be built ({what[0]}); try: {shlex.join(wheel_command(parent))}")
    shutil.copy(SOURCE / "tpu" / "worker.py", folder)
    (folder / "constraints.txt").write_text(constraints())
    for place, path in _files(copies).items():
        (folder / "files" / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder / "files" / place)
    inside = {p.relative_to(folder).as_posix(): worker.sha256(p) for p in sorted(folder.rglob("*")) if p.is_file()}
    manifest.write_text(json.dumps({"id": wanted, "files": inside}, indent=1))  # last: without it, it is built anew
    return folder
