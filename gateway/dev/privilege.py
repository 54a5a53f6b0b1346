"""Who runs Postgres: it refuses to be root, so as root it runs as an unprivileged user, in a folder of that user."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

# Not tempfile.gettempdir(): TMPDIR may be a folder that only root can enter.
_SHARED_TEMPORARY = Path("/tmp")  # noqa: S108 - the folders made in it are new, 0700 and checked before reuse
_PREFIX = "silogate-postgres-"


@dataclass(frozen=True, slots=True)
class Account:
    """A user that a server runs as."""

    uid: int
    gid: int


def unprivileged_account() -> Account | None:
    """The account for servers that refuse root; None when this process is not root and needs no other."""
    if os.geteuid() != 0:
        return None
    nobody = pwd.getpwnam("nobody")
    return Account(nobody.pw_uid, nobody.pw_gid)


def private_folder(link: Path, account: Account | None) -> Path:
    """A 0700 folder of the account, reached through `link`: the folder itself, or one in /tmp when running as root.

    A home of root is 0700, so a folder under it could not be entered by anybody else.
    """
    if account is None:
        link.mkdir(mode=0o700, parents=True, exist_ok=True)
        return link
    if link.is_symlink() and _is_ours(link.readlink(), account):
        return link.readlink()
    link.unlink(missing_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=_SHARED_TEMPORARY))
    os.chown(folder, account.uid, account.gid)
    link.symlink_to(folder)
    return folder


def remove_private_folder(link: Path) -> None:
    """Remove the folder behind `link`, and the link."""
    if link.is_symlink():
        target = link.readlink()
        if target.parent == _SHARED_TEMPORARY and target.name.startswith(_PREFIX):
            shutil.rmtree(target, ignore_errors=True)
        link.unlink()
    else:
        shutil.rmtree(link, ignore_errors=True)


def _is_ours(folder: Path, account: Account) -> bool:
    try:
        state = folder.lstat()
    except OSError:
        return False
    return folder.is_dir() and not folder.is_symlink() and state.st_uid == account.uid and state.st_mode & 0o077 == 0


def reachable_install(install: Path, account: Account | None, folder: Path) -> Path:
    """The Postgres installation, or a copy of it in `folder` when the account cannot reach the original."""
    if account is None or _runs(install, account):
        return install
    copy = folder / "install" / install.parent.name / install.name
    if not copy.exists():
        libraries = install.parent.parent / f"{install.parent.name}.libs"
        if libraries.is_dir():
            _copy(libraries, folder / "install" / libraries.name)
        _copy(install, copy)
    return copy


def _runs(install: Path, account: Account) -> bool:
    try:
        subprocess.run(
            [install / "bin" / "postgres", "--version"],
            user=account.uid,
            group=account.gid,
            extra_groups=[],
            cwd="/",
            capture_output=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return False
    return (install / "share").stat().st_mode & 0o005 == 0o005


def _copy(source: Path, target: Path) -> None:
    """Copy a tree so that everybody may read it; written beside its name first, so that half a copy is never used."""
    unfinished = target.with_name(f"{target.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    shutil.copytree(source, unfinished, symlinks=True)
    for path in (unfinished, *unfinished.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
    for parent in (target.parent, target.parent.parent):
        parent.chmod(0o755)
    unfinished.rename(target)
