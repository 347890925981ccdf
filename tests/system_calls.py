"""What a program does outside of its process, as a tracer of system calls sees it: sockets and files that it writes.

`python tests/system_calls.py COMMAND...` runs a command in a network namespace without interfaces and prints the list.
Needs Linux, strace and unshare (util-linux).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

_CREATES = ("creat", "mkdir", "mkdirat", "mknod", "mknodat")
_RENAMES = ("rename", "renameat", "renameat2", "link", "linkat", "symlink", "symlinkat")
_OPENS = ("open", "openat", "openat2")
_BLIND = ("io_uring_setup",)
"""Ways around the tracer: what is done through them would not be seen."""
_SHOWN = 6
_LOOPBACK_UP = """
import fcntl, os, socket, struct, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
    fcntl.ioctl(any_socket, 0x8914, struct.pack("16sH14x", b"lo", 0x1 | 0x40))  # SIOCSIFFLAGS: up and running
os.execvp(sys.argv[1], sys.argv[1:])
"""
_ADDRESS = re.compile(r'inet_addr\("([^"]*)"\)|inet_pton\(AF_INET6, "([^"]*)"')
_CALL = re.compile(r"(\w+)\((.*?)(?:\) += (\d*)|$)")
_LOOPBACK = re.compile(r'"127\.[\d.]+"|"::1"')
_STRING = re.compile(r'(?:(?:AT_FDCWD|\d+)<((?:[^>\\]|\\.)*)>, )?"((?:[^"\\]|\\.)*)"')
_WRITES = re.compile(r"\bO_(?:WRONLY|RDWR|CREAT|TRUNC|APPEND)\b")


@dataclass(frozen=True)
class Seen:
    """What a command and all its children did."""

    sockets: tuple[str, ...]
    """Every call of the network that is not about a local socket, and ways around the tracer."""
    local_sockets: int
    """Sockets of the family AF_UNIX, and those that do no more than take a port of this machine's own address."""
    written: tuple[Path, ...]
    """Everything that was opened for writing, made or renamed, whether or not that succeeded."""
    exit_code: int
    output: str
    """stdout of the command."""
    errors: str

    def outside(self, allowed: Iterable[Path]) -> list[Path]:
        """The written paths that lie in none of these places."""
        places = [place.resolve() for place in allowed]
        return [path for path in self.written if not any(path.is_relative_to(place) for place in places)]

    def addresses(self) -> set[str]:
        """Every address of a network that any call named, or was told."""
        return {one or other for call in self.sockets for one, other in _ADDRESS.findall(call)}


@cache
def missing_tools() -> str:
    """Why commands cannot be traced here; empty if they can."""
    for tool in ("strace", "unshare"):
        if shutil.which(tool) is None:
            return f"{tool} is not installed"
    tried = subprocess.run([*_namespace(), "strace", "-f", "-o", os.devnull, "true"], capture_output=True)
    return (
        "" if tried.returncode == 0 else f"this system does not let us trace: {tried.stderr.decode()[-200:]}"
    )


def watch(
    command: Sequence[str],
    environment: Mapping[str, str],
    given: str = "",
    directory: Path | None = None,
    *,
    loopback: bool = False,
) -> Seen:
    """Run a command in a network namespace without interfaces, or with `lo` alone, and under the tracer.

    `given` is its stdin.
    """
    names = ",".join((*_OPENS, *_CREATES, *_RENAMES, *_BLIND))
    with TemporaryDirectory() as traces:
        tracer = ["strace", "-ff", "-qq", "--seccomp-bpf", "-y", "-s", "4096", "-o", f"{traces}/t"]
        up = [sys.executable, "-c", _LOOPBACK_UP] if loopback else []
        done = subprocess.run(
            [*_namespace(), *up, *tracer, "-e", f"trace=%network,{names}", *command],
            env=dict(environment), input=given, capture_output=True, text=True, cwd=directory,
        )  # fmt: skip
        threads = [list(_calls(trace)) for trace in sorted(Path(traces).iterdir())]
    start = Path(directory or Path.cwd())
    sockets = [_sockets(calls) for calls in threads]
    written = dict.fromkeys(
        path for calls in threads for name, arguments, _ in calls for path in _paths(name, arguments, start)
    )
    network = dict.fromkeys(call for found, _ in sockets for call in found)
    local = sum(count for _, count in sockets)
    return Seen(tuple(network), local, tuple(written), done.returncode, done.stdout, done.stderr)


def _namespace() -> list[str]:
    return ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--map-root-user", "--net"]


def _calls(trace: Path) -> Iterator[tuple[str, str, str]]:
    """Names, arguments and results of the calls of one thread; a result that is no number is empty."""
    for line in trace.read_text("utf-8", "replace").splitlines():
        if found := _CALL.match(line):
            yield found[1], found[2], found[3] or ""


def _sockets(calls: Iterable[tuple[str, str, str]]) -> tuple[list[str], int]:
    """What a thread did about a network, and how many sockets it had that were local."""
    network: list[str] = []
    local, unused = 0, dict[str, str]()
    for name, arguments, result in calls:
        call, number = f"{name}({arguments})", arguments.partition("<")[0]
        if name in ("socket", "socketpair") and arguments.startswith(("AF_UNIX", "AF_LOCAL")):
            local += 1
        elif name == "socket" and arguments.startswith("AF_INET"):
            network += [unused.pop(result)] if result in unused else []
            unused[result] = call
        elif name == "bind" and number in unused and _LOOPBACK.search(arguments):
            local += 1  # whether this system has that address: nothing is sent
            del unused[number]
        elif name in ("socket", "socketpair", *_BLIND) or "AF_INET" in arguments:
            network.append(call)
    return [*network, *unused.values()], local


def _paths(name: str, arguments: str, start: Path) -> Iterator[Path]:
    """The paths that a call makes or opens for writing; of a link or a new name, the last."""
    if name not in (*_OPENS, *_CREATES, *_RENAMES) or (name in _OPENS and not _WRITES.search(arguments)):
        return
    strings = _STRING.findall(arguments)
    if strings:
        base, path = (_unescaped(text) for text in strings[-1])
        yield Path(os.path.normpath(start / base / path))


def _unescaped(text: str) -> str:
    """A path as the tracer spells it: bytes beyond ASCII as octal numbers."""
    return os.fsdecode(text.encode("latin-1", "replace").decode("unicode_escape").encode("latin-1"))


def main() -> None:
    """Print what a command does outside of its process."""
    if fault := missing_tools():
        sys.exit(fault)
    seen = watch(sys.argv[1:], os.environ)
    sys.stdout.write(seen.output)
    sys.stderr.write(seen.errors)
    sys.stdout.write(f"\n{describe(seen)}\n")
    sys.exit(seen.exit_code)


def describe(seen: Seen) -> str:
    """A list to read: every socket, and what was written."""
    lines = [f"sockets: {seen.local_sockets} local ones", *(f"  {call}" for call in seen.sockets), "written:"]
    folders: dict[Path, list[str]] = {}
    for path in seen.written:
        folders.setdefault(path.parent, []).append(path.name)
    for folder, names in sorted(folders.items()):
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        lines.append(f"  {folder}: {', '.join(names[:_SHOWN])}{more}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
