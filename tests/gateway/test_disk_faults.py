"""The real gateway on a disk that fails: it says why it admits nothing, and goes on by itself when the disk does.

By LD_PRELOAD each system call of a commit fails in turn (tests/gateway/faulty_disk.c), and a small file system of its
own is filled up.
"""

from __future__ import annotations

import errno
import json
import os
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from audit.verify import verify_log
from certs.files import read_private_key
from gateway.starter import AUDIENCE, LOCAL_ISSUER, Site
from policy.identity.local import LocalDirectory, issue_token
from tests.processes import killed_after

pytestmark = [pytest.mark.whole, pytest.mark.real]


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("shim") / "faulty_disk.so"
    source = Path(__file__).with_name("faulty_disk.c")
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", target, source], check=True, timeout=60)
    return target


class Asking:
    """A client of the gateway."""

    def __init__(self, site: Site, listen: str) -> None:
        key = read_private_key(site.directory / "token.key")
        person = LocalDirectory.load(site.people).people["alice"]
        token = issue_token(person, key, LOCAL_ISSUER, AUDIENCE, int(time.time()), 900)  # type: ignore[arg-type]
        self._client = httpx.Client(
            base_url=f"https://{listen}",
            verify=ssl.create_default_context(cafile=str(site.ca)),
            trust_env=False,
            timeout=20,
            headers={"authorization": f"Bearer {token}"},
        )
        self.acknowledged: list[tuple[int, str]] = []

    def __enter__(self) -> Asking:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def ask(self) -> dict[str, Any]:
        """One check; what was acknowledged is remembered."""
        reason = f"asked {len(self.acknowledged)} at {time.monotonic_ns()}"
        answer = self._client.post("/v1/decisions", json={"vm": "web", "destination": "b", "reason": reason})
        document: dict[str, Any] = answer.json()
        if answer.status_code == 200:
            self.acknowledged.append((document["record_index"], reason))
        else:
            assert answer.status_code == 503, document
            assert document["error"]["code"] == "log_unavailable"
        return document

    def until_works(self) -> None:
        until = time.monotonic() + 60
        while "error" in self.ask():
            assert time.monotonic() < until
            time.sleep(0.05)


@contextmanager
def gateway(
    site: Site, command: list[str], environment: Mapping[str, str]
) -> Iterator[tuple[subprocess.Popen[bytes], Asking]]:
    serve = [str(Path(sys.executable).with_name("sealane")), "gateway", "serve", "--config", str(site.gateway_config)]
    with (site.directory / "stderr").open("wb") as errors:
        process = subprocess.Popen(
            [*command, *serve], stdout=subprocess.PIPE, stderr=errors, env={**os.environ, **environment}
        )
    assert process.stdout is not None
    try:
        with killed_after(process):
            ready = process.stdout.readline()
        assert ready, (site.directory / "stderr").read_text()
        with Asking(site, json.loads(ready)["listen"]) as asking:
            yield process, asking
    finally:
        process.terminate()
        process.wait(20)
        process.stdout.close()


def outages(log: Path) -> list[dict[str, Any]]:
    """The records of outages, from the tail: these logs are short."""
    data = b"".join(path.read_bytes() for path in sorted((log / "tail").iterdir()))
    found, position = [], 0
    while position < len(data):
        end = position + 2 + int.from_bytes(data[position : position + 2])
        record = json.loads(data[position + 2 : end]).get("record", {})
        if record.get("kind") == "log.recovered":
            found.append(record)
        position = end
    return found


def require_sound(site: Site, log: Path, asking: Asking) -> None:
    verdict = verify_log(log, [site.vkey])
    assert verdict.problems == []
    data = b"".join(path.read_bytes() for path in (log / "tail").iterdir())
    for _, reason in asking.acknowledged:
        assert reason.encode() in data


CALLS = [
    ("write", errno.ENOSPC),
    ("fdatasync", errno.EIO),
    ("fsync", errno.EIO),
    ("rename", errno.EROFS),
    ("open", errno.EMFILE),
    ("all", errno.EIO),
]


def test_each_call_of_a_commit_fails_in_turn_and_nothing_acknowledged_is_lost(
    site: Site, shim: Path, tmp_path: Path
) -> None:
    order = tmp_path / "order"
    order.write_text("none")
    environment = {"LD_PRELOAD": str(shim), "SEALANE_FAULT_FOLDER": str(site.log), "SEALANE_FAULT_ORDER": str(order)}
    with gateway(site, [], environment) as (_, asking):
        for number, (call, code) in enumerate(CALLS, 1):
            asking.until_works()
            order.write_text(f"{call} {code}\n")
            refused = asking.ask()
            assert os.strerror(code) in refused["error"]["message"], (call, refused)
            assert "error" in asking.ask()  # not by hope
            order.write_text("none")
            asking.until_works()
            assert len(outages(site.log)) == number
            assert os.strerror(code) in outages(site.log)[-1]["details"]["because"]
    require_sound(site, site.log, asking)


def in_a_small_file_system(site: Site) -> tuple[Path, list[str]]:
    """The folder on which the log's is to be, and what starts a gateway in a mount namespace where that is 512 KiB."""
    folder = site.directory / "small"
    folder.mkdir()
    text = site.gateway_config.read_text()
    site.gateway_config.write_text(text.replace('directory = "log"', 'directory = "small/log"'))
    mount = f'mount -t tmpfs -o size=512k,mode=700 none "{folder}" && exec "$@"'
    return folder, ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount, "sh"]


def test_a_full_file_system_stops_it_until_there_is_room_again(site: Site) -> None:
    folder, command = in_a_small_file_system(site)
    with gateway(site, command, {}) as (process, asking):
        seen = Path(f"/proc/{process.pid}/root{folder}")  # the same folder, in the mount namespace of the gateway
        asking.until_works()
        fill(seen / "filler")
        refused = ask_until(asking, lambda answer: "error" in answer)
        assert os.strerror(errno.ENOSPC) in refused["error"]["message"]
        (seen / "filler").unlink()
        asking.until_works()
        (outage,) = outages(seen / "log")
        assert os.strerror(errno.ENOSPC) in outage["details"]["because"]
        require_sound(site, seen / "log", asking)


def test_a_file_system_that_turned_read_only_is_used_again_once_it_can_be_written(site: Site) -> None:
    """Full first: the kernel does not take away what is open for writing, and a failed log is let go of."""
    folder, command = in_a_small_file_system(site)
    with gateway(site, command, {}) as (process, asking):
        seen = Path(f"/proc/{process.pid}/root{folder}")

        def remount(how: str) -> bool:
            within = ["nsenter", "--target", str(process.pid), "--user", "--preserve-credentials", "--mount"]
            command = [*within, "mount", "-o", f"remount,{how}", str(folder)]
            return subprocess.run(command, check=False, capture_output=True, timeout=20).returncode == 0

        asking.until_works()
        fill(seen / "filler")
        ask_until(asking, lambda answer: "error" in answer)
        until = time.monotonic() + 60
        while not remount("ro"):  # the log may be open just now, for an attempt
            assert time.monotonic() < until
            time.sleep(0.01)
        read_only = os.strerror(errno.EROFS)
        ask_until(asking, lambda answer: read_only in json.dumps(answer))
        assert remount("rw")
        (seen / "filler").unlink()
        asking.until_works()
        details = outages(seen / "log")[-1]["details"]
        assert os.strerror(errno.ENOSPC) in details["because"]
        assert read_only in details["lately"]
        require_sound(site, seen / "log", asking)


def fill(path: Path) -> None:
    with pytest.raises(OSError, match="No space left"), path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(512))


def ask_until(asking: Asking, done: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    until = time.monotonic() + 60
    while not done(answer := asking.ask()):
        assert time.monotonic() < until, "it never happened"
    return answer
