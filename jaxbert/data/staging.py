"""Rows on a host's own disk: copied once from where the corpus lies, because training reads them in random order.

A pod's hosts share the corpus over a network (a mounted bucket, NFS). A step reads rows from anywhere in the files, so
each host needs all of them, and only the bytes of its own rows at a step: memory maps of local files give it that.
"""

import hashlib
import os
import shutil
import zlib
from pathlib import Path

from jaxbert.errors import BadInput

BLOCK = 16 << 20  # bytes read at once


def stage(folder: Path, directory: Path) -> Path:
    """The copy of a folder of rows in `directory`, made if missing; returns its path.

    It has the folder's name, below one made of what its descriptions (*.json) say: other rows never pass for it. Files
    appear whole, descriptions last: started again after a kill, it copies what is missing. Every file
    is read back and compared with what was read. Raises BadInput if the disk has too little room, or fails.
    """
    files = sorted((p for p in folder.rglob("*") if p.is_file()), key=lambda p: (p.suffix == ".json", p))
    about = hashlib.blake2b(digest_size=8)
    for path in files:
        if path.suffix == ".json":
            about.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    target = directory / about.hexdigest() / folder.name
    missing = [path for path in files if _size(target / path.relative_to(folder)) != path.stat().st_size]
    try:
        target.mkdir(parents=True, exist_ok=True)
        needed, free = sum(path.stat().st_size for path in missing), shutil.disk_usage(target).free
        if needed > free:
            raise BadInput(
                f"data.stage: {folder} needs {needed:,} more bytes, and {directory} has {free:,} free; name a larger "
                "disk, or leave data.stage out: rows are then read where they lie"
            )
        for path in missing:
            _copy(path, target / path.relative_to(folder))
    except OSError as error:
        raise BadInput(f"data.stage: cannot copy {folder} to {directory}: {error.strerror or error}") from None
    return target


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _copy(source: Path, target: Path) -> None:
    """Whole or not at all, under a name of this process's own until then: a host may run several."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.tmp-{os.getpid()}")
    try:
        read = []  # a sum of each block: four times as fast as a cryptographic hash, and nobody means harm here
        with open(source, "rb") as file, open(partial, "wb") as copy:
            while block := file.read(BLOCK):
                read.append(zlib.crc32(block))
                copy.write(block)
            copy.flush()
            os.fsync(copy.fileno())
            if hasattr(os, "posix_fadvise"):  # else what is read back comes from memory, whatever the disk holds
                os.posix_fadvise(copy.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        with open(partial, "rb") as copy:
            written = [zlib.crc32(block) for block in iter(lambda: copy.read(BLOCK), b"")]
        if written != read:
            raise BadInput(f"data.stage: {target} does not hold what was copied into it; check that disk")
        partial.rename(target)
    finally:
        partial.unlink(missing_ok=True)
