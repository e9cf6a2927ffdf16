"""Damage to files, and disks that are full."""

import contextlib
import os
import pathlib
import shutil
import subprocess
from collections.abc import Iterator


def largest(directory: pathlib.Path) -> pathlib.Path:
    """Returns the largest file under a directory, which has the arrays."""
    files = [path for path in directory.rglob("*") if path.is_file()]
    return max(files, key=lambda path: (path.stat().st_size, path.name))


def flip(path: pathlib.Path, place: float = 0.5, bit: int = 0) -> None:
    """Flips one bit of a file, at a relative position."""
    raw = bytearray(path.read_bytes())
    raw[int(place * (len(raw) - 1))] ^= 1 << bit
    path.write_bytes(raw)


def cut(path: pathlib.Path, share: float = 0.5) -> None:
    """Truncates a file to a share of its length."""
    os.truncate(path, int(path.stat().st_size * share))


def append(path: pathlib.Path, text: str) -> None:
    """Appends text to a file; a lone surrogate stands for a byte that is not text."""
    path.write_bytes(path.read_bytes() + text.encode(errors="surrogateescape"))


def change(path: pathlib.Path, old: str, new: str) -> None:
    """Replaces text in a file."""
    text = path.read_text()
    assert old in text, text
    path.write_text(text.replace(old, new, 1))


@contextlib.contextmanager
def disk(path: pathlib.Path, free_kilobytes: int) -> Iterator[None]:
    """Mounts a file system in memory with a directory's contents and limited space."""
    kept = path.rename(path.with_name(f"{path.name}-kept"))
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=100m", "tmpfs", str(path)]
    subprocess.run(mount, check=True, capture_output=True)
    try:
        shutil.copytree(kept, path, dirs_exist_ok=True)
        resize(path, shutil.disk_usage(path).used // 1024 + free_kilobytes)
        yield
    finally:
        # Unmounts even if a process still uses it after a failure.
        umount = ["umount", "--lazy", str(path)]
        subprocess.run(umount, check=True, capture_output=True)


def fill(path: pathlib.Path) -> None:
    """Fills a file system of `disk` while others write to it."""
    for _ in range(1000):
        # What others write in the meantime does not fit.
        with contextlib.suppress(subprocess.CalledProcessError):
            resize(path, shutil.disk_usage(path).used // 1024)
            return
    raise AssertionError(f"{path} never was full")


def resize(path: pathlib.Path, kilobytes: int) -> None:
    """Changes the size of a file system of `disk`."""
    option = f"remount,size={kilobytes}k"
    subprocess.run(["mount", "-o", option, str(path)], check=True, capture_output=True)
