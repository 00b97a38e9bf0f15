"""A model of a disk behind a cache: what it holds after a power cut at any moment.

It follows the calls that a program makes. A written sector reaches the disk when its file is synced, a name when its
directory is, and before that perhaps, in any order: POSIX promises no more. Only a rename is one step, as with every
journal.
"""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

_SECTOR = 512
_RANDOM_IMAGES = 8
Image = dict[str, bytes | None]  # by path; None for a directory


@dataclass(eq=False)
class _File:
    content: bytes = b""
    pending: list[tuple[int, bytes]] = field(default_factory=list)

    def sync(self) -> None:
        self.content = self.perhaps(lambda: True)
        self.pending.clear()

    def perhaps(self, happens: Callable[[], bool]) -> bytes:
        content = bytearray(self.content)
        for offset, data in self.pending:
            for start in range(0, len(data), _SECTOR):
                if happens():
                    sector = data[start : start + _SECTOR]
                    content.extend(bytes(max(0, offset + start - len(content))))
                    content[offset + start : offset + start + len(sector)] = sector
        return bytes(content)


@dataclass(eq=False)
class _Directory:
    names: dict[str, _File | _Directory] = field(default_factory=dict)


_Change = list[tuple[_Directory, str, _File | _Directory | None]]


class Disk:
    """The disk below a directory, with everything synced that is there already.

    Args:
        root: The directory.

    Attributes:
        power_cuts: What the disk held after each call, in several variants, each with what `label` was then.
        label: Set by the test.
        is_failing: Whether the next sync of a file fails, and loses what was to be written.
    """

    def __init__(self, root: Path) -> None:
        self._nodes: dict[int, _File | _Directory] = {}
        self._root = self._load(root)
        self._changes: list[_Change] = []
        self._random = random.Random(0)
        self.power_cuts: list[tuple[Any, Image]] = []
        self.label: Any = None
        self.is_failing = False

    def watch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Follow what this process does from now on."""
        for name in ("open", "mkdir", "rename", "unlink", "pwrite", "fdatasync", "fsync"):
            monkeypatch.setattr(os, name, self._watched(getattr(os, name), getattr(self, f"_after_{name}")))

    def cut_power(self) -> None:
        """Note what the disk would hold if the power were cut now."""
        self.power_cuts += [(self.label, image) for image in self._images()]

    def _watched(self, call: Callable[..., Any], after: Callable[..., None]) -> Callable[..., Any]:
        def watched(*args: Any, **kwargs: Any) -> Any:
            result = call(*args, **kwargs)
            if after(result, *args, **kwargs) is not False:
                self.cut_power()
            return result

        return watched

    def _after_open(self, fd: int, path: Any, flags: int, _mode: int = 0, dir_fd: int | None = None) -> bool | None:
        if not flags & os.O_CREAT:
            return False
        file = self._nodes[os.fstat(fd).st_ino] = _File()
        self._changes.append([(*self._place(path, dir_fd), file)])
        return None

    def _after_mkdir(self, _: None, path: Any, _mode: int = 0, dir_fd: int | None = None) -> None:
        directory = self._nodes[os.stat(path, dir_fd=dir_fd).st_ino] = _Directory()
        self._changes.append([(*self._place(path, dir_fd), directory)])

    def _after_rename(self, _: None, source: Any, target: Any, src_dir_fd: int, dst_dir_fd: int) -> None:
        node = self._nodes[os.stat(target, dir_fd=dst_dir_fd).st_ino]
        self._changes.append([(*self._place(source, src_dir_fd), None), (*self._place(target, dst_dir_fd), node)])

    def _after_unlink(self, _: None, path: Any, dir_fd: int | None = None) -> None:
        self._changes.append([(*self._place(path, dir_fd), None)])

    def _after_pwrite(self, written: int, fd: int, data: bytes, offset: int) -> None:
        file = self._nodes[os.fstat(fd).st_ino]
        assert isinstance(file, _File)
        file.pending.append((offset, bytes(data[:written])))

    def _after_fdatasync(self, _: None, fd: int) -> None:
        file = self._nodes[os.fstat(fd).st_ino]
        assert isinstance(file, _File)
        if self.is_failing:
            self.is_failing = False
            file.pending.clear()  # it stays in the cache, marked as written: Linux from 4.13 on
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        file.sync()

    def _after_fsync(self, _: None, fd: int) -> None:
        node = self._nodes[os.fstat(fd).st_ino]
        if isinstance(node, _File):
            node.sync()
            return
        for change in [change for change in self._changes if any(directory is node for directory, _, _ in change)]:
            for directory, name, target in change:
                _set(directory.names, name, target)
            self._changes.remove(change)

    def _images(self) -> Iterator[Image]:
        yield self._image(lambda: False)
        yield self._image(lambda: True)
        for _ in range(_RANDOM_IMAGES):
            yield self._image(lambda: self._random.random() < 0.5)

    def _image(self, happens: Callable[[], bool]) -> Image:
        names: dict[_Directory, dict[str, Any]] = {}
        for change in self._changes:
            if happens():
                for directory, name, target in change:
                    _set(names.setdefault(directory, dict(directory.names)), name, target)
        image: Image = {}
        waiting: list[tuple[str, _Directory]] = [("", self._root)]
        while waiting:
            path, directory = waiting.pop()
            for name, node in names.get(directory, directory.names).items():
                if isinstance(node, _Directory):
                    image[f"{path}{name}"] = None
                    waiting.append((f"{path}{name}/", node))
                else:
                    image[f"{path}{name}"] = node.perhaps(happens)
        return image

    def _load(self, path: Path) -> _Directory:
        directory = _Directory()
        self._nodes[path.stat().st_ino] = directory
        for child in path.iterdir():
            node = self._load(child) if child.is_dir() else _File(child.read_bytes())
            self._nodes[child.stat().st_ino] = directory.names[child.name] = node
        return directory

    def _place(self, path: Any, dir_fd: int | None) -> tuple[_Directory, str]:
        parent, name = os.path.split(os.fspath(path))
        directory = self._nodes[os.stat(parent or ".", dir_fd=dir_fd).st_ino]
        assert isinstance(directory, _Directory)
        return directory, name


def restore(image: Image, at: Path) -> None:
    """Write what a disk held to a new directory."""
    at.mkdir(mode=0o700)
    for path, content in image.items():
        if content is None:
            (at / path).mkdir(mode=0o700)
        else:
            (at / path).write_bytes(content)
            (at / path).chmod(0o600)


def _set(names: dict[str, Any], name: str, node: _File | _Directory | None) -> None:
    if node is None:
        names.pop(name, None)
    else:
        names[name] = node
