"""Where the sockets of monitors are, whose they are, and which of them were left behind.

Guarantees: a socket that this module makes can be reached by its own user and by root only, from its first moment on:
its folder has mode 0700 and belongs to that user, and it has mode 0600 itself. No symbolic link is followed to the
folder, and the folder is the same one from the check to the last step, since all steps go through one descriptor. A
name appears only when somebody listens there already, so whoever finds nobody listening may remove it.

A name holds the process's number and a token, so a number that is used again leads to no old socket.
"""

from __future__ import annotations

import os
import re
import secrets
import socket
import stat
import struct
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

NAME = re.compile(r"(\d+)-[0-9a-f]{8}\.sock")
UNFINISHED = ".new"
"""The end of a name under which a socket is being made."""
HALF_MADE = re.compile(rf"\.{NAME.pattern}{re.escape(UNFINISHED)}")
FORGOTTEN = 60.0
"""Seconds after which a socket that is still being made is taken for left behind."""
LONGEST = 100
"""Bytes that the address of a socket may have on every system."""
BACKLOG = 128
"""How many may wait to be accepted."""
MOST = 1000
"""How many names of a folder are looked at."""
_LINUX = sys.platform.startswith("linux")
_POSIX = hasattr(socket, "AF_UNIX") and hasattr(os, "geteuid")


class Listening(NamedTuple):
    """A socket that listens, its path, and the number of its file, by which it is recognised."""

    socket: socket.socket
    path: str
    inode: int


class Mark(NamedTuple):
    """What a descriptor leads to. A program may close all descriptors, as daemons do, and then use their numbers for
    files of its own: these are not ours to read or to close.
    """

    device: int
    inode: int


def mark_of(fd: int) -> Mark | None:
    """None: nothing is open there."""
    try:
        seen = os.fstat(fd)
    except (OSError, ValueError):
        return None
    return Mark(seen.st_dev, seen.st_ino)


def let_go(ours: socket.socket, mark: Mark | None) -> None:
    """Close the socket, if its descriptor is ours still."""
    if mark is not None and mark_of(ours.fileno()) == mark:
        ours.close()
    else:
        ours.detach()


class Pipe:
    """A pipe by which another thread is woken, which waits until `wake` can be read."""

    def __init__(self) -> None:
        self.wake, self._ring = os.pipe()
        self.mark = mark_of(self.wake)

    def ring(self) -> bool:
        """False: it is not there any more."""
        if mark_of(self._ring) != self.mark:  # both ends have the same
            return False
        os.write(self._ring, b"x")
        return True

    def close(self) -> None:
        for fd in (self.wake, self._ring):
            if mark_of(fd) == self.mark:
                with suppress(OSError):
                    os.close(fd)


def own_folder() -> str:
    """The folder for this user's sockets, made if need be. Raises OSError if there is none that is safe."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if os.path.isabs(runtime) and _is_own(runtime):
        folder = os.path.join(runtime, "cmwq")
    else:
        folder = os.path.join(tempfile.gettempdir(), f"cmwq-{os.geteuid()}")
    with suppress(FileExistsError):
        os.mkdir(folder, 0o700)
    with _opened(folder, os.geteuid()):
        return folder


def folders(uid: int) -> list[str]:
    """The folders in which sockets of this user may be, whatever the environment of the process was that made them."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    likely = [os.path.join(runtime, "cmwq")] if os.path.isabs(runtime) and uid == os.geteuid() else []
    likely += [f"/run/user/{uid}/cmwq"]
    likely += [os.path.join(temporary, f"cmwq-{uid}") for temporary in (tempfile.gettempdir(), "/tmp", "/var/tmp")]
    found: list[str] = []
    for folder in likely:
        with suppress(OSError), _opened(folder, uid):
            if not any(os.path.samefile(folder, other) for other in found):
                found.append(folder)
    return found


def folders_of(pid: int, uid: int) -> list[str]:
    """The folders in which the sockets of this process are if it was started with another environment, or sees other
    files than this process, as in a container.
    """
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            pairs = (each.partition(b"=") for each in file.read(1 << 20).split(b"\0"))
            environment = {os.fsdecode(name): os.fsdecode(value) for name, _, value in pairs}
    except OSError:
        return []
    likely = [os.path.join(environment.get("XDG_RUNTIME_DIR", ""), "cmwq")]
    temporaries = [*map(environment.get, ("TMPDIR", "TEMP", "TMP")), "/tmp", "/var/tmp"]
    likely += [os.path.join(each, f"cmwq-{uid}") for each in temporaries if each]
    found: list[str] = []
    for folder in likely:
        seen_there = f"/proc/{pid}/root{folder}"
        with suppress(OSError):
            if os.path.isabs(folder):
                with _opened(seen_there, uid):
                    found.append(seen_there)
    return found


def sockets(folder: str) -> Iterator[tuple[int, str]]:
    """The number of the process and the path of each socket in the folder, whether somebody listens there or not."""
    with suppress(OSError):
        for name in sorted(os.listdir(folder))[:MOST]:
            match = NAME.fullmatch(name)
            if match:
                yield int(match[1]), os.path.join(folder, name)


def listen(path: str | None) -> Listening:
    """Listen at this path, or at a new one in the user's own folder.

    A socket at that path that was left behind is replaced. Raises OSError if the folder is not safe, if somebody
    listens at that path, if something else is there, or if the system has no such sockets.
    """
    if not _POSIX:
        raise OSError(f"a monitor needs a Unix socket that is its user's own, which {sys.platform} does not have")
    if path is None:
        folder = own_folder()
        sweep(folder)
        return _listen(folder, f"{os.getpid()}-{secrets.token_hex(4)}.sock", os.geteuid())
    folder, name = os.path.split(os.path.abspath(path))
    if os.path.lexists(path) and not nobody_listens(path):
        what = "another process listens there" if _is_socket(path) else "it is there already, and is no socket"
        raise FileExistsError(f"{path}: {what}; choose another path for the monitor")
    return _listen(folder, name, None)


def _listen(folder: str, name: str, owner: int | None) -> Listening:
    unfinished = f".{name}{UNFINISHED}"
    with _opened(folder, owner) as fd:
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            if _LINUX:
                os.fchmod(made.fileno(), 0o600)  # the file gets this mode as it is made
            made.bind(_address(folder, fd, unfinished))
            os.chmod(unfinished, 0o600, dir_fd=fd)
            made.listen(BACKLOG)
            made.setblocking(False)
            os.rename(unfinished, name, src_dir_fd=fd, dst_dir_fd=fd)
            inode = os.stat(name, dir_fd=fd, follow_symlinks=False).st_ino
        except BaseException:
            made.close()
            with suppress(OSError):
                os.unlink(unfinished, dir_fd=fd)
            raise
    return Listening(made, os.path.join(folder, name), inode)


def remove(path: str, inode: int) -> None:
    """Remove the socket, unless another one has its path by now."""
    with suppress(OSError):
        if os.stat(path, follow_symlinks=False).st_ino == inode:
            os.unlink(path)


def sweep(folder: str) -> None:
    """Remove what processes left behind that ended without a farewell: killed, or replaced by exec.

    Only in a folder of this user: in one of others, who can exchange it meanwhile, root must remove nothing.
    """
    with suppress(OSError), _opened(folder, os.geteuid()) as fd:
        for pid, path in sockets(folder):
            if (pid == os.getpid() or not _lives(pid)) and nobody_listens(path):
                with suppress(OSError):
                    os.unlink(os.path.basename(path), dir_fd=fd)
        for name in os.listdir(fd)[:MOST]:
            if HALF_MADE.fullmatch(name):
                with suppress(OSError):
                    if os.stat(name, dir_fd=fd, follow_symlinks=False).st_mtime < time.time() - FORGOTTEN:
                        os.unlink(name, dir_fd=fd)


def nobody_listens(path: str) -> bool:
    """True: it is a socket that was left behind. False: somebody listens there, or it is something else."""
    if not _is_socket(path):
        return False
    try:
        dial(path).close()
    except ConnectionRefusedError:
        return True
    except OSError:
        pass
    return False


def dial(path: str) -> socket.socket:
    """Connect to the socket at this path, without waiting. Raises OSError; BlockingIOError if too many wait there."""
    folder, name = os.path.split(os.path.abspath(path))
    caller = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        caller.setblocking(False)
        with _opened(folder, None) as fd:
            caller.connect(_address(folder, fd, name))
    except BaseException:
        caller.close()
        raise
    return caller


class Peer(NamedTuple):
    """Who is at the other end of a connection. pid: 0 if that is not known, or has no number here."""

    uid: int
    pid: int


def peer_of(connection: socket.socket) -> Peer | None:
    """Who is at the other end; None if the system does not say."""
    try:
        if hasattr(socket, "SO_PEERCRED"):
            pid, uid, _ = struct.unpack("iII", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            return Peer(uid, max(pid, 0))
        # macOS and the BSDs: SOL_LOCAL is 0, and LOCAL_PEERCRED is 1; the answer is a struct xucred.
        version, uid = struct.unpack_from("II", connection.getsockopt(0, 1, 128))
        return Peer(uid, 0) if version == 0 else None
    except (OSError, struct.error):
        return None


@contextmanager
def _opened(folder: str, owner: int | None) -> Iterator[int]:
    """The folder as a descriptor. If an owner is given: no symbolic link, theirs, and closed to all others; else
    PermissionError.
    """
    nofollow = 0 if owner is None else os.O_NOFOLLOW
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | nofollow)
    try:
        if owner is not None:
            seen = os.fstat(fd)
            if seen.st_uid != owner or stat.S_IMODE(seen.st_mode) & 0o077:
                raise PermissionError(
                    f"{folder} belongs to user {seen.st_uid} and has mode {stat.S_IMODE(seen.st_mode):04o}; for the "
                    f"sockets of monitors it must belong to user {owner} and have mode 0700"
                )
        yield fd
    finally:
        os.close(fd)


def _address(folder: str, fd: int, name: str) -> str:
    """An address for the name in the open folder. Raises OSError if it is too long for one."""
    if _LINUX and os.path.exists(f"/proc/self/fd/{fd}"):
        folder = f"/proc/self/fd/{fd}"
    address = os.path.join(folder, name)
    if len(os.fsencode(address)) > LONGEST:
        raise OSError(f"{address}: the path is too long for a socket, choose one of at most {LONGEST} bytes")
    return address


def _is_own(folder: str) -> bool:
    try:
        seen = os.stat(folder)
    except OSError:
        return False
    return stat.S_ISDIR(seen.st_mode) and seen.st_uid == os.geteuid() and not seen.st_mode & 0o022


def _is_socket(path: str) -> bool:
    try:
        return stat.S_ISSOCK(os.lstat(path).st_mode)
    except OSError:
        return False


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True
