"""What a hostile reading of the relay found: each test failed before its fix."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest

from transport.hypervisors.errors import HypervisorUnreachable
from transport.hypervisors.process import is_gone, process_identity


def test_a_living_process_is_not_gone_when_no_descriptor_is_left_to_look_at_it() -> None:
    identity = process_identity(os.getpid())
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    held: list[int] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (_used_descriptors() + 3, hard))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            while True:
                held.append(os.dup(0))
        with pytest.raises(HypervisorUnreachable):
            is_gone(identity)
    finally:
        for descriptor in held:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert not is_gone(identity)
    boot, pid, start = identity.split(":")
    assert is_gone(f"{boot}:{pid}:{int(start) + 1}")
    assert is_gone(f"other-boot:{pid}:{start}")


def _used_descriptors() -> int:
    return max(int(entry.name) for entry in Path("/proc/self/fd").iterdir())
