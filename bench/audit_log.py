"""The log under load, and a gateway on a log of five million entries.

Appends go through what the gateway uses (Recorder, Committer, Log): each record stamped, signed by itself and durable
under a signed checkpoint before its writer goes on. The big log is made once (`bench.audit_log_maker`) and kept in BIG;
every run works on a clone of it, whose full bundles are hard links. The gateway is a real process: it is started once
to find its place, and once more to be measured.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import ssl
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import httpx
import msgspec
import trio
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from audit.log import Log
from audit.tiles import TILE_WIDTH, bundle_path
from bench.audit_log_maker import ORIGIN, Story, bench_signer, make_log, telling
from bench.harness import BenchError, Plan, peak_rss_bytes, wait_until
from bench.peers import free_port, running
from gateway.clocks import system_clock
from gateway.committer import Committer
from gateway.recording import Event, Recorder
from gateway.starter import HostPlan, Site, VmPlan, lay_out_site

DISK = Path("/var/tmp")  # noqa: S108 - folders of our own are made in it; /tmp may be in memory, where durable means nothing
BIG = DISK / "sealane-bench"
WRITERS = 64
INDEX = "index.sqlite"
APPENDS = 30_000
PROOFS = 200
INDEX_SECONDS = 3_600.0
GROWTH = (10_000, 100_000, 1_000_000, 5_000_000)


def measure(plan: Plan) -> dict[str, float]:
    """Figures append_* and growth_*."""
    appends = APPENDS // 10 if plan.quick else APPENDS
    rounds = [_append_round(appends) for _ in range(plan.rounds_to_run)]
    figures = {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}
    for size in dict.fromkeys(min(size, plan.records) for size in GROWTH):
        figures |= _growth(big_log(size), size, appends // 3)
    return figures


def measure_gateway(plan: Plan) -> dict[str, float]:
    """Figures start_s, gateway_rss_mib and proof_*, on the log and the index of `audit_asking`."""
    return _gateway(big_log(plan.records), PROOFS // 10 if plan.quick else PROOFS)


def big_log(records: int, *, alone: bool = False) -> Path:
    """Made once, and kept; one that was stopped is gone on with, and a longer one goes on from a shorter one."""
    folder = BIG / f"audit-{records}{'-alone' if alone else ''}"
    shorter = [] if alone else [BIG / f"audit-{size}" / "log" for size in GROWTH if size < records]
    made = [log for log in shorter if (log / "checkpoint").exists()]
    if made and not folder.exists():
        begun = folder.with_suffix(".begun")
        shutil.rmtree(begun, ignore_errors=True)
        _copy(made[-1], begun / "log")
        begun.rename(folder)
    return make_log(folder, records, alone=alone, progress=telling(records))


# --- Appending ------------------------------------------------------------------------------------------------------


def _append_round(appends: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="bench-", dir=DISK) as name:
        waits_many, seconds_many = trio.run(_append, Path(name) / "log", WRITERS, appends // WRITERS)
        waits_one, seconds_one = trio.run(_append, Path(name) / "log", 1, appends // WRITERS)
    return {
        "append_64_per_s": len(waits_many) / seconds_many,
        "append_64_p50_ms": statistics.median(waits_many) * 1000,
        "append_64_p99_ms": statistics.quantiles(waits_many, n=100)[-1] * 1000,
        "append_1_per_s": len(waits_one) / seconds_one,
        "append_1_p50_ms": statistics.median(waits_one) * 1000,
    }


async def _append(directory: Path, writers: int, each: int) -> tuple[list[float], float]:
    """How long each record waited to be durable, and all of them."""
    signer, waits = bench_signer(), list[float]()
    committer = Committer(partial(Log.open, directory, signer), 4_096)
    await committer.open()
    recorder = Recorder(committer, signer, "bench", system_clock())
    story = Story(0, hashlib.sha256(b"bench").digest())
    details = story.decision(allowed=True)
    event = Event("migration.decision", "allowed", actor=story.actor, reason="bench", **story.parties, details=details)

    async def write() -> None:
        for _ in range(each):
            began = time.perf_counter()
            await recorder.append(event)
            waits.append(time.perf_counter() - began)

    async with trio.open_nursery() as nursery:
        await nursery.start(committer.run)
        began = time.perf_counter()
        async with trio.open_nursery() as all_writers:
            for _ in range(writers):
                all_writers.start_soon(write)
        seconds = time.perf_counter() - began
        nursery.cancel_scope.cancel()
    await committer.close()
    return waits, seconds


# --- Growth ---------------------------------------------------------------------------------------------------------


def _growth(big: Path, size: int, appends: int) -> dict[str, float]:
    """Opening, appending to and proving in a log of `size`."""
    with _clone(big) as directory:
        began = time.perf_counter()
        with Log.open(directory, bench_signer()) as log:
            opened = time.perf_counter() - began
            luck = random.Random(size)
            proofs = []
            for _ in range(PROOFS):
                index = luck.randrange(log.size)
                began = time.perf_counter()
                log.inclusion_path(index, log.size)
                proofs.append(time.perf_counter() - began)
        _, seconds = trio.run(_append, directory, WRITERS, appends // WRITERS)
    return {
        f"growth_{size}_open_s": opened,
        f"growth_{size}_proof_ms": statistics.median(proofs) * 1000,
        f"growth_{size}_append_64_per_s": appends // WRITERS * WRITERS / seconds,
    }


@contextmanager
def _clone(big: Path) -> Iterator[Path]:
    """Of its full bundles there are hard links: what is appended to the clone is not in `big`."""
    with tempfile.TemporaryDirectory(prefix="bench-", dir=DISK) as name:
        clone = Path(name) / "log"
        _copy(big, clone)
        yield clone


def _copy(log: Path, target: Path) -> None:
    shutil.copytree(log, target, copy_function=_link_what_is_full)


def _link_what_is_full(source: str, target: str) -> str:
    if "/tile/" in source:
        os.link(source, target)
        return target
    return shutil.copy2(source, target)


# --- A gateway on it ------------------------------------------------------------------------------------------------


def _gateway(big: Path, proofs: int) -> dict[str, float]:
    with _clone(big) as log, tempfile.TemporaryDirectory(prefix="bench-", dir=DISK) as name:
        site = _site(Path(name) / "site", log)
        if (index := index_of(big)).exists():  # else the gateway makes it
            (site.directory / "state").mkdir(mode=0o700, exist_ok=True)
            shutil.copy2(index, site.directory / "state" / INDEX)
        size = int((log / "checkpoint").read_text(encoding="utf-8").split("\n")[1])
        _remember(log, size, site.directory / "state" / "log-seen")
        with _serving(site, Path(name), INDEX_SECONDS):
            pass
        began = time.perf_counter()
        with _serving(site, Path(name), 120) as (pid, url):
            started = time.perf_counter() - began
            waits = _prove(site, url, size, proofs)
            rss = peak_rss_bytes(pid)
    return {
        "start_s": started,
        "gateway_rss_mib": rss / 2**20,
        "proof_ms": statistics.median(waits) * 1000,
        "proof_p95_ms": statistics.quantiles(waits, n=20)[-1] * 1000,
    }


def index_of(big: Path) -> Path:
    """The query index of a big log, which is kept beside it."""
    return big.parent / INDEX


def _remember(log: Path, size: int, seen: Path) -> None:
    """What a gateway that ran on this log would have left (`gateway.log_watching`): it takes minutes to look at all."""
    paths = [log / bundle_path(number) for number in range(size // TILE_WIDTH)]
    sizes = [path.stat().st_size for path in paths if path.exists()]  # the last ones may stand in the tail
    seen.parent.mkdir(mode=0o700, exist_ok=True)
    text = (log / "checkpoint").read_text(encoding="utf-8")
    seen.write_bytes(msgspec.json.encode({"checkpoint": text, "bundle_sizes": sizes}))


def _site(folder: Path, log: Path) -> Site:
    site = lay_out_site(
        folder,
        hosts=[HostPlan(name, f"127.0.0.1:{free_port()}") for name in ("host-a", "host-b")],
        vms=[VmPlan("vm", "00000000-0000-4000-8000-000000000001", "host-a")],
        log_origin=ORIGIN,
        now=datetime.now(UTC),
    )
    key = bench_signer().private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (site.certs / "gateway" / "log.key").write_bytes(key)  # the file keeps its mode, 0600
    text = site.gateway_config.read_text(encoding="utf-8")
    site.gateway_config.write_text(text.replace('directory = "log"', f'directory = "{log}"'), encoding="utf-8")
    return site


@contextmanager
def _serving(site: Site, folder: Path, seconds: float) -> Iterator[tuple[int, str]]:
    command = [str(Path(sys.executable).with_name("sealane")), "gateway", "serve", "--config", str(site.gateway_config)]
    log = folder / "gateway.log"
    with running(command, log) as process:
        wait_until(
            lambda: b'"ready": true' in log.read_bytes() or process.poll() is not None, "the gateway's start", seconds
        )
        ready = [line for line in log.read_bytes().splitlines() if b'"ready": true' in line]
        if not ready:
            raise BenchError("the gateway did not start")
        yield process.pid, f"https://{msgspec.json.decode(ready[0])['listen']}"


def _prove(site: Site, url: str, size: int, proofs: int) -> list[float]:
    """Seconds that an auditor waits for an inclusion proof of any entry, on a connection that is open."""
    waits, luck = [], random.Random(1)
    trust = ssl.create_default_context(cafile=str(site.ca))
    with httpx.Client(base_url=url, verify=trust, timeout=60.0) as client:
        body = {"username": "carol", "password": site.passwords["carol"]}
        token = client.post("/v1/token", json=body).raise_for_status().json()["access_token"]
        for _ in range(proofs):
            parameters = {"index": luck.randrange(size), "size": size}
            began = time.perf_counter()
            answer = client.get("/v1/proofs/inclusion", params=parameters, headers={"authorization": f"Bearer {token}"})
            waits.append(time.perf_counter() - began)
            answer.raise_for_status()
    return waits
