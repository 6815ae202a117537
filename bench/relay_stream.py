"""One stream between two unix sockets: sender → source process ═ TCP ═ destination process → receiver."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from bench import peers
from bench.certificates import make_certificates
from bench.harness import (
    GB,
    BenchError,
    Meter,
    Plan,
    Rounds,
    Run,
    keep_apart,
    print_rounds,
    relay_figures,
    run_interleaved,
)
from bench.peers import Start
from bench.sealane_peer import sealane
from policy.permit import Requirements

STREAM_BYTES = 6 * GB
QUICK_BYTES = 1 * GB
DIGESTS = Requirements(content_digest=True, stream_inspection=False, vm_binding=False)
DEADLINE_SECONDS = 300.0


def measure(plan: Plan) -> dict[str, float]:
    """Run all rounds and return the figures of this part. The kernel chooses who runs on which core."""
    rounds = _rounds(
        plan, "stream", ("direct", "socat", "haproxy", "stunnel", "sealane", "sealane-digests", "sealane-tls")
    )
    figures = _figures("stream", rounds)
    if {"sealane", "haproxy"} <= rounds.runs.keys():
        figures["relay_cpu_vs_haproxy"] = rounds.cpu_against("sealane", "haproxy")
    if "sealane-digests" in rounds.runs:
        figures["digests_vs_without"] = rounds.times_as_fast("sealane-digests", "sealane")
    if "sealane-tls" in rounds.runs:
        figures["tls_lanes_vs_sealed"] = rounds.times_as_fast("sealane-tls", "sealane")
    if "sealane" in rounds.runs:
        figures["relay_rss_mib"] = max(run.peak_rss_bytes for run in rounds.runs["sealane"]) / 2**20
    return figures


def measure_apart(plan: Plan) -> dict[str, float]:
    """The same, each host on a core of its own, whoever carries (`relay_migration.measure_apart`)."""
    rounds = _rounds(plan, "stream_apart", ("direct", "socat", "haproxy", "stunnel", "sealane"), apart=True)
    return _figures("stream_apart", rounds)


def _rounds(plan: Plan, prefix: str, names: Sequence[str], *, apart: bool = False) -> Rounds:
    size_bytes = QUICK_BYTES if plan.quick else STREAM_BYTES
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        make_certificates(folder / "certificates")
        starts: dict[str, Start] = {
            "direct": peers.direct,
            "socat": peers.socat,
            "haproxy": peers.haproxy(folder / "certificates"),
            "stunnel": peers.stunnel(folder / "certificates"),
            "sealane": sealane(folder / "sealane"),
            "sealane-digests": sealane(folder / "digests", requirements=DIGESTS),
            "sealane-tls": sealane(folder / "tls", seal="tls"),
        }
        contenders = {name: _contender(starts[name], size_bytes, apart=apart) for name in names if name in plan.peers}
        rounds = run_interleaved(prefix, contenders, plan.rounds_to_run)
    how = ", each host on its own core" if apart else ""
    print_rounds(f"one stream of {size_bytes / GB:g} GB{how}, median of {plan.rounds_to_run}", rounds, "sealane")
    return rounds


def _figures(prefix: str, rounds: Rounds) -> dict[str, float]:
    figures = relay_figures(prefix, rounds)
    for other in ("haproxy", "socat", "stunnel"):
        if {"sealane", other} <= rounds.runs.keys():
            figures[f"{prefix}_vs_{other}"] = rounds.times_as_fast("sealane", other)
    return figures


def _contender(start: Start, size_bytes: int, *, apart: bool) -> Callable[[], Run]:
    def run() -> Run:
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            return carry(start, Path(folder), size_bytes, apart=apart)

    return run


def carry(start: Start, folder: Path, size_bytes: int, channels: int = 1, *, apart: bool = False) -> Run:
    """Send `size_bytes` through a pair, in so many streams at once.

    Start-up and handshake are not in the time, nor start-up in the CPU time.
    """
    leave = folder / peers.VM / "leave.sock"
    leave.parent.mkdir()
    ends = [sys.executable, "-m", "bench.stream_ends"]
    with subprocess.Popen([*ends, "receive", str(leave), str(channels)], stdout=subprocess.PIPE, text=True) as receiver:
        try:
            assert receiver.stdout is not None
            if receiver.stdout.readline() != "ready\n":
                raise BenchError("the receiver did not start: its message is above")
            with start(folder, leave) as carrier:
                on: list[str] = []
                if apart:
                    core, _ = keep_apart(carrier.pids[:1], (receiver.pid, *carrier.pids[1:]))
                    on = ["taskset", "--cpu-list", str(core)]
                with Meter(carrier.pids) as meter:
                    _send([*on, *ends, "send", str(carrier.enter), str(size_bytes // channels)], channels)
                    received, seconds = receiver.communicate(timeout=DEADLINE_SECONDS)[0].split()
                if int(received) != size_bytes // channels * channels:
                    raise BenchError(f"{received} of {size_bytes} bytes arrived")
        except (subprocess.SubprocessError, ValueError) as error:
            raise BenchError(f"the stream broke: {error}") from error
        finally:
            receiver.kill()
    return Run(float(seconds), int(received), meter.cpu_seconds, meter.peak_rss_bytes)


def _send(command: list[str], times: int) -> None:
    senders = [subprocess.Popen(command) for _ in range(times)]
    try:
        for sender in senders:
            if sender.wait(DEADLINE_SECONDS):
                raise BenchError("a sender broke: its message is above")
    finally:
        for sender in senders:
            sender.kill()
            sender.wait()
