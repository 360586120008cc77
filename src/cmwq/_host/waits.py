"""What a thread of this process waits for in the system, in words: by /proc/self/task/TID/syscall, without privileges.

The words are a predicate: "waits in recvfrom() for the TCP connection 127.0.0.1:40412 to 127.0.0.1:5432 (fd 5)". They
do not change while the thread goes on to wait for the same thing. They may be out of date by the time they are read:
the thread may have gone on, and a descriptor may have become another one's. Nothing is changed by looking, and no
Python code of others runs.

A look takes one read of a file in /proc, which costs about ten microseconds, and of a wait for a descriptor two or
three more system calls. Where the file can't be read, `wchan` tells a little. Assumes Linux, and a machine whose
numbers of system calls are in `_CALLS`.
"""

from __future__ import annotations

import os
import platform
import sys
from contextlib import suppress
from typing import NamedTuple

from cmwq._host import files

MAX_WORDS = 300
"""Characters, at most."""


class Call(NamedTuple):
    """A system call that a thread is in."""

    name: str
    """Empty: the number is not known."""
    number: int
    """-1: none; it waits outside of one, for memory."""
    args: tuple[int, ...]


_FD = (
    "read", "write", "readv", "writev", "pread64", "pwrite64", "recvfrom", "sendto", "recvmsg", "sendmsg", "accept",
    "accept4", "connect", "fsync", "fdatasync",
)  # fmt: skip
"""Calls whose first argument is the descriptor that they wait for."""
_POLL = ("poll", "ppoll")
_EPOLL = ("epoll_wait", "epoll_pwait", "epoll_pwait2")
_SLEEP = ("nanosleep", "clock_nanosleep")
_MEMORY = ("mmap", "munmap", "mprotect", "madvise", "brk")
_F_SETLKW = 7

_CALLS: dict[str, dict[int, str]] = {
    "x86_64": {
        0: "read", 1: "write", 7: "poll", 9: "mmap", 10: "mprotect", 11: "munmap", 12: "brk", 17: "pread64",
        18: "pwrite64", 19: "readv", 20: "writev", 23: "select", 28: "madvise", 34: "pause", 35: "nanosleep",
        40: "sendfile", 42: "connect", 43: "accept", 44: "sendto", 45: "recvfrom", 46: "sendmsg", 47: "recvmsg",
        56: "clone", 58: "vfork", 61: "wait4", 72: "fcntl", 73: "flock", 74: "fsync", 75: "fdatasync",
        128: "rt_sigtimedwait", 202: "futex", 230: "clock_nanosleep", 232: "epoll_wait", 247: "waitid", 257: "openat",
        270: "pselect6", 271: "ppoll", 275: "splice", 281: "epoll_pwait", 288: "accept4", 318: "getrandom",
        426: "io_uring_enter", 435: "clone3", 441: "epoll_pwait2",
    },
    "aarch64": {
        22: "epoll_pwait", 25: "fcntl", 32: "flock", 56: "openat", 63: "read", 64: "write", 65: "readv", 66: "writev",
        67: "pread64", 68: "pwrite64", 71: "sendfile", 72: "pselect6", 73: "ppoll", 76: "splice", 82: "fsync",
        83: "fdatasync", 95: "waitid", 98: "futex", 101: "nanosleep", 115: "clock_nanosleep", 137: "rt_sigtimedwait",
        202: "accept", 203: "connect", 206: "sendto", 207: "recvfrom", 211: "sendmsg", 212: "recvmsg", 214: "brk",
        215: "munmap", 220: "clone", 222: "mmap", 226: "mprotect", 233: "madvise", 242: "accept4", 260: "wait4",
        278: "getrandom", 426: "io_uring_enter", 435: "clone3", 441: "epoll_pwait2",
    },
}  # fmt: skip
_RUNNING = "running"  # in place of a system call


def call_of(tid: int) -> Call | None:
    """Return the system call in which the thread sleeps. None: it runs, has ended, or nothing can be read."""
    return _call(_read(f"/proc/self/task/{tid}/syscall"))


def _call(text: str) -> Call | None:
    """What a `syscall` file says."""
    if not text or text.startswith(_RUNNING):
        return None
    number, *rest = text.split()
    try:
        known = _CALLS.get(platform.machine(), {}) if sys.maxsize > 2**32 else {}
        return Call(known.get(int(number), ""), int(number), tuple(int(word, 16) for word in rest[:6]))
    except ValueError:
        return None


def in_words(tid: int) -> str:
    """Return what the thread waits for. Empty: nothing, or not known."""
    text = _read(f"/proc/self/task/{tid}/syscall")
    if text.startswith(_RUNNING):
        return ""  # a look at `wchan`, a moment later, may find it elsewhere: as if it had been asleep all the time
    call = _call(text)
    if call is not None and (call.name or call.number < 0):
        return _words(call)[:MAX_WORDS]
    function = _read(f"/proc/self/task/{tid}/wchan")
    return "" if function in ("", "0") else f"asleep in the kernel's {function}"


def sleeps(tid: int) -> bool:
    """Return whether the thread sleeps for a time that it chose itself."""
    call = call_of(tid)
    if call is not None and call.name:
        return call.name in _SLEEP
    return _read(f"/proc/self/task/{tid}/wchan").endswith("nanosleep")


def _words(call: Call) -> str:
    name, args = call.name, call.args
    if name == "futex":
        return "waits for a lock (futex)"
    if name in _SLEEP:
        return f"sleeps ({name})"
    if name in _MEMORY or call.number < 0:
        return f"waits for memory ({name or 'a page fault'})"
    if name in ("wait4", "waitid"):
        return _child(name, _signed(args[0] if name == "wait4" else args[1]) if name == "wait4" or args[0] == 1 else -1)
    if name in _EPOLL:
        return f"waits in {name}() for events of any descriptor of an event loop ({_descriptor(args[0])})"
    if name in _POLL:
        return f"waits in {name}() for {_polled(args[0], args[1])}"
    if name == "flock" or (name == "fcntl" and args[1] == _F_SETLKW):
        return f"waits in {name}() for a lock on {_descriptor(args[0])}"
    if name == "openat":
        path = _string_at(args[1])
        return "waits in openat()" + (f" to open {path}" if path else "")
    if name in ("rt_sigtimedwait", "pause"):
        return f"waits for a signal ({name})"
    if name in _FD:
        return f"waits in {name}() for {_descriptor(args[0])}"
    return f"waits in {name}()"


def _signed(number: int) -> int:
    number &= 0xFFFFFFFF
    return number - (1 << 32) if number >> 31 else number


def _child(name: str, pid: int) -> str:
    if pid <= 0:
        return f"waits for any child process ({name})"
    return f"waits for child process {pid}, {_command(pid)} ({name})"


def _command(pid: int) -> str:
    words = _read(f"/proc/{pid}/cmdline").replace("\0", " ").strip()
    return repr(words if len(words) <= 100 else words[:97] + "...") if words else "which has ended or shows no command"


def _polled(address: int, number: int) -> str:
    """The descriptors of an array of struct pollfd in our own memory."""
    data = _memory_at(address, 8 * min(number, 3))
    found = [int.from_bytes(data[at : at + 4], sys.byteorder, signed=True) for at in range(0, len(data) - 7, 8)]
    shown = [_descriptor(fd) for fd in found if fd >= 0]
    if not shown:
        return f"{number} descriptors" if number else "a time to pass"
    return " or ".join(shown) + (f" or {number - len(found)} more" if number > len(found) else "")


def _memory_at(address: int, size: int) -> bytes:
    if not (size and address):
        return b""
    with suppress(OSError, OverflowError, ValueError):
        fd = os.open("/proc/self/mem", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.pread(fd, size, address)
        finally:
            os.close(fd)
    return b""


def _string_at(address: int) -> str:
    page = 4096 - address % 4096  # what is on the next page may not be readable
    return _memory_at(address, min(page, 200)).partition(b"\0")[0].decode(errors="replace")


def _descriptor(fd: int) -> str:
    """A descriptor of this process in words, with its file or peer."""
    fd = _signed(fd)
    try:
        target = os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return f"fd {fd}, which is closed"
    if target.startswith("socket:"):
        what = _socket(fd)
    elif target.startswith("pipe:"):
        what = "a pipe"
    elif target.startswith("anon_inode:"):
        what = target.removeprefix("anon_inode:").strip("[]")
    else:
        what = target
    return f"{what} (fd {fd})"


def _socket(fd: int) -> str:
    """A socket with its own address and its peer's. It is asked by a copy of the descriptor, which is closed again."""
    import socket  # here, because most programs that use this package never get here

    try:
        one = socket.socket(fileno=os.dup(fd))
    except OSError:
        return "a socket"
    try:
        listens = bool(one.getsockopt(socket.SOL_SOCKET, getattr(socket, "SO_ACCEPTCONN", 30)))
        own, peer = _address(one.getsockname()), ""
        with suppress(OSError):
            peer = _address(one.getpeername())
        if one.family == getattr(socket, "AF_UNIX", None):
            return _unix_socket(one, own, peer, listens=listens)
        kind = {socket.SOCK_STREAM: "TCP", socket.SOCK_DGRAM: "UDP"}.get(one.type, "network")
        if listens:
            return f"the {kind} socket that listens at {own}"
        return f"the {kind} connection {own} to {peer}" if peer else f"the {kind} socket {own}, which is not connected"
    except OSError:
        return "a socket"
    finally:
        one.close()


def _unix_socket(one: object, own: str, peer: str, *, listens: bool) -> str:
    import socket
    import struct

    if listens:
        return f"the Unix socket that listens at {own or 'no path'}"
    whose = ""
    with suppress(OSError, AttributeError, struct.error):
        size = struct.calcsize("3i")
        pid = struct.unpack("3i", one.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))[0]  # type: ignore[attr-defined]
        if pid > 0:
            whose = ", made by this process" if pid == os.getpid() else f", of process {pid} {_command(pid)}"
    path = peer or own
    return f"the Unix socket {path or 'without a path'}{whose}"


def _address(address: object) -> str:
    """An address as `socket` gives it."""
    if isinstance(address, tuple) and len(address) >= 2:
        host = f"[{address[0]}]" if ":" in str(address[0]) else str(address[0])
        return f"{host}:{address[1]}"
    if isinstance(address, bytes):
        return "@" + address.lstrip(b"\0").decode(errors="replace")  # an abstract name
    return str(address)


def _read(path: str) -> str:
    try:
        return files.read(path, 4096).decode(errors="replace")
    except OSError:
        return ""
