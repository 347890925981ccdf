"""A cluster to work on: one that this process starts for itself, or one that its user names."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from tempfile import gettempdir, mkdtemp
from typing import Any

import psutil

from ayaedge.errors import BackendError, InvalidOptionError, MissingExtraError
from ayaedge.files import not_own
from ayaedge.hardware.machine import memory, usable_threads

HERE = "local"
"""An address that is none: a cluster of this machine alone, which ends with the batch."""
_OBJECT_STORE = 256 << 20
"""Bytes of a cluster of our own for rows on their way; more goes to files."""
_PATIENCE = 10.0
"""Seconds for a cluster's machine to answer."""
_PREFIX = "ayaedge-ray-"
_LOOPBACK = "127.0.0.1"
_LOGGERS = ("ray", "ray.data", "ray._private")
"""What tells of every start and end."""


def require_ray() -> Any:
    """Ray with Ray Data; MissingExtraError without it."""
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise MissingExtraError("a batch on several machines", "ray") from error
    return ray


@contextmanager
def connected(address: str | None = None, *, verbose: bool = False) -> Iterator[None]:
    """Ray in this process until the block ends; one that is connected already is used as it is.

    `address` (`HOST:PORT`, or `auto` for the cluster that this machine is part of) names a running cluster, of which
    this machine must be a node. Without one, or with `local`, a cluster of this machine alone is started: it listens
    on loopback, lets nobody in without its random token, and keeps its files where only this user can read them.
    Ray's dashboard and its usage statistics stay off. InvalidOptionError where no cluster answers.
    """
    if address not in (None, HERE, "auto"):
        _require_listener(str(address))
    with ExitStack() as until_the_end:
        if not verbose:  # it speaks of every actor
            until_the_end.enter_context(_environment(RAY_BACKEND_LOG_LEVEL="fatal"))
        ray = require_ray()
        _settle_messages(ray, verbose)
        if not ray.is_initialized():
            until_the_end.callback(ray.shutdown)
            start = partial(_start, ray, verbose)
            if address in (None, HERE):
                until_the_end.enter_context(_own_cluster(ray, start))
            else:
                _connect(start, str(address))
        yield


def _require_listener(address: str) -> None:
    """Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_PATIENCE).close()
    except (OSError, ValueError, OverflowError) as error:
        raise InvalidOptionError(
            f"no Ray cluster answers at {address}: {error} (Ray's own command, ray start, starts one)"
        ) from None


def _settle_messages(ray: Any, verbose: bool) -> None:
    for name in () if verbose else _LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = verbose


def _start(ray: Any, verbose: bool, **options: Any) -> None:
    level = logging.INFO if verbose else logging.ERROR
    before = signal.getsignal(signal.SIGTERM)
    with nullcontext() if verbose else _without_stderr():
        ray.init(log_to_driver=verbose, logging_level=level, **options)
    if threading.current_thread() is threading.main_thread() and before is not None:
        signal.signal(signal.SIGTERM, before)  # Ray's own prints the stack, and ends with another code


def _connect(start: Callable[..., None], address: str) -> None:
    try:
        start(address=address)
    except Exception as error:
        raise InvalidOptionError(
            f"no Ray cluster can be used at {address}: {error}; this machine must be a node of it "
            "(Ray's own command, ray start, makes it one)"
        ) from error


@contextmanager
def _own_cluster(ray: Any, start: Callable[..., None]) -> Iterator[None]:
    private = _private_directory()
    try:
        # Ray takes a mode that the environment names; without one it asks everybody for the token
        with _environment(RAY_AUTH_TOKEN=secrets.token_hex(32), RAY_AUTH_MODE=None):
            with alone(ray):
                _start_here(ray, start, private)
            yield
            ray.shutdown()
    finally:
        ray.shutdown()
        shutil.rmtree(private, ignore_errors=True)


def _private_directory() -> Path:
    """A directory of this user's for what Ray makes, which is open to everybody; those of killed processes go."""
    # names of sockets in it may have a hundred bytes
    place = Path(gettempdir() if os.name == "nt" else "/tmp")
    for left in place.glob(f"{_PREFIX}*"):
        process = left.name.removeprefix(_PREFIX).partition("-")[0]
        if process.isdecimal() and not psutil.pid_exists(int(process)) and not not_own(left):
            shutil.rmtree(left, ignore_errors=True)
    return Path(mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=place))


def _start_here(ray: Any, start: Callable[..., None], private: Path) -> None:
    try:
        start(
            address="local", include_dashboard=False, num_cpus=usable_threads(), _memory=memory().available,
            object_store_memory=_OBJECT_STORE, _temp_dir=str(private / "ray"),
        )  # fmt: skip
    except Exception as error:
        raise BackendError(f"Ray did not start on this machine: {error}") from error
    addresses = {node["NodeManagerAddress"] for node in ray.nodes()}
    if addresses != {_LOOPBACK}:
        raise BackendError(f"Ray listens on {addresses} instead of {_LOOPBACK}: it was stopped")


@contextmanager
def _without_stderr() -> Iterator[None]:
    """While Ray's native half starts, which says that it was told to say nothing; what fails is raised."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


@contextmanager
def alone(ray: Any) -> Iterator[None]:
    """While Ray starts here, it keeps to this machine: addresses of loopback, as always on Windows and macOS.

    Asked for such an address, it would look for one that other machines reach. Its dashboard is a process that starts
    even when it is switched off: it asks clouds' addresses whether it runs there, and tells Ray's makers that usage
    statistics are off.
    """
    constants, node = ray._private.ray_constants, ray._private.node.Node
    before = constants.ENABLE_RAY_CLUSTER, node.start_api_server
    constants.ENABLE_RAY_CLUSTER, node.start_api_server = False, _no_dashboard
    try:
        with _environment(**{constants.ENABLE_RAY_CLUSTERS_ENV_VAR: "0"}):  # of the processes that it starts
            yield
    finally:
        constants.ENABLE_RAY_CLUSTER, node.start_api_server = before


def _no_dashboard(node: Any, **_: Any) -> None:
    node._webui_url = ""


@contextmanager
def _environment(**values: str | None) -> Iterator[None]:
    """Variables of the environment for a while; None takes one away."""
    before = {name: os.environ.get(name) for name in values}
    _set(values)
    try:
        yield
    finally:
        _set(before)


def _set(values: dict[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
