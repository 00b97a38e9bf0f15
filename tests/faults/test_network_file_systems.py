"""File systems on which locks do not hold, by what the system calls them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from asyncsess import StoreError
from asyncsess.backends.file import directory as directory_module
from asyncsess.backends.file.directory import file_system_type

from .fuse import fuse_mounted
from .operations import store_at

MOUNTINFO = """\
21 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw
36 21 0:40 / /srv/with\\040space rw,noatime master:1 propagate_from:2 - nfs4 server:/export rw,vers=4.2
37 21 0:41 / /home/me/far rw,nosuid shared:7 - fuse.sshfs me@far:/ rw,user_id=1000
38 21 0:42 / /dev/shm rw - tmpfs tmpfs rw
a line that means nothing
"""


@pytest.fixture
def table(tmp_path: Path) -> str:
    table = tmp_path / "mountinfo"
    table.write_text(MOUNTINFO)
    return str(table)


@pytest.mark.parametrize(
    ("device", "kind"),
    [((254, 1), "ext4"), ((0, 40), "nfs4"), ((0, 41), "fuse.sshfs"), ((0, 42), "tmpfs"), ((0, 4), ""), ((0, 400), "")],
)
def test_the_type_of_a_file_system_is_found_by_its_device(device: tuple[int, int], kind: str, table: str) -> None:
    assert file_system_type(os.makedev(*device), table) == kind


def test_where_there_is_no_table_of_mounts_the_type_is_unknown(tmp_path: Path) -> None:
    assert file_system_type(os.makedev(254, 1), str(tmp_path / "nothing")) == ""


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "fuse.sshfs", "fuse.glusterfs", "fuse"])
async def test_a_network_file_system_is_refused_unless_it_is_allowed(
    kind: str, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory_module, "file_system_type", lambda _: kind)

    with pytest.raises(StoreError, match=rf"{kind}.*allow_network_fs=True"):
        await store_at(directory).create({})

    async with store_at(directory, allow_network_fs=True) as store:
        assert await store.create({})


@pytest.mark.parametrize("kind", ["", "ext4", "xfs", "btrfs", "zfs", "tmpfs", "overlay", "bcachefs", "f2fs"])
async def test_a_local_file_system_is_accepted(kind: str, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directory_module, "file_system_type", lambda _: kind)

    assert await store_at(directory).create({})


async def test_a_mounted_fuse_file_system_is_refused_unless_it_is_allowed(tmp_path: Path) -> None:
    with fuse_mounted(tmp_path / "far") as far:
        with pytest.raises(StoreError, match=r"fuse.*allow_network_fs=True"):
            await store_at(far).__aenter__()

        async with store_at(far, allow_network_fs=True):
            pass
