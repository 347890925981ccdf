"""Processes as they are seen from outside."""

from __future__ import annotations

import os
import sys

import pytest

from ayaedge.bench.process_watch import Resident, parse_status, resident, run_watched
from ayaedge.errors import BackendError

STATUS = "Name:\tpython\nVmHWM:\t  900 kB\nRssAnon:\t  100 kB\nRssFile:\t   20 kB\nRssShmem:\t    3 kB\nThreads:\t2\n"


def test_linux_tells_what_is_allocated_and_what_is_mapped() -> None:
    assert parse_status(STATUS) == Resident(123 * 1024, 103 * 1024, 20 * 1024)
    assert parse_status("Name:\tpython\nState:\tZ (zombie)\n") is None


def test_this_process_is_resident_and_one_that_is_gone_is_not() -> None:
    here = resident(os.getpid())
    assert here is not None
    assert here.total > 10_000_000
    assert resident(2**22 + 1) is None


def test_the_first_output_and_the_peak_of_memory_are_seen() -> None:
    code = "import sys, time; print('é', flush=True); x = bytearray(64 << 20); time.sleep(0.3); del x; print('done')"
    finished = run_watched([sys.executable, "-c", code], environment={**os.environ, "PYTHONUTF8": "1"})
    assert finished.output.split() == ["é", "done"]
    assert 0 < finished.first_output < finished.seconds - 0.2
    assert finished.peak.total > 64 << 20


def test_a_process_that_fails_says_why() -> None:
    with pytest.raises(BackendError, match="status 3: out of luck"):
        run_watched([sys.executable, "-c", "import sys; sys.stderr.write('out of luck'); sys.exit(3)"])
