"""SIGKILL of a real gateway under load, over and over, and then the question what of all that it had said is true.

    FOLDER/site/            a site as `lay_out_site` makes it, with its log
    FOLDER/heard.jsonl      all that clients heard of it, as they heard it: the truth to compare the log with
    FOLDER/gateway.log      its operational log

Clients ask for checks and for migrations; a stand-in for the source relay takes the permits. The gateway, the real one
(`lives.py` begins it quickly), is killed at random, one time in eight while it still starts. Everything heard is kept,
so that a run may be stopped and continued.

Counted at the end, against the log, by the independent verifier and by entry: records that were acknowledged and are
not there, gaps, forks (checkpoints that somebody heard and the final log does not continue), unprovable permits.
"""

from __future__ import annotations

import json
import random
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TextIO
from uuid import UUID

import httpx
import trio
from cryptography.hazmat.primitives.asymmetric import ec

from audit.checkpoint import LogSigner, LogVerifier, open_checkpoint
from audit.errors import AuditError
from audit.log import Log
from audit.proof import leaf_hash, verify_inclusion
from audit.verify import verify_log
from certs.files import read_private_key
from gateway.starter import AUDIENCE, LOCAL_ISSUER, HostPlan, Site, VmPlan, lay_out_site
from policy.errors import PermitRefused
from policy.identity.local import LocalDirectory, ScryptCost, issue_token
from policy.permit import PermitKey, proof_entry, verify_permit
from tests.soak.lives import life_of_gateway

VMS: Final = 2_000  # a permit that nobody uses blocks its VM for PERMIT_SECONDS
PERMIT_SECONDS: Final = 5
CHECKERS, MOVERS = 4, 4
MAX_ALIVE_SECONDS: Final = 0.8
MAX_AWAITED: Final = 20  # records
MAX_STARTING_SECONDS: Final = 1.0  # of one that loads no modules: before its recovery, in it, or soon after
START_SECONDS: Final = 300.0  # where many share the machine
REQUEST_SECONDS: Final = 20.0


@dataclass(slots=True)
class Result:
    """`problems`: what the verifier found wrong, gaps included. Anything but 0 and none is the gateway's fault."""

    kills: int = 0
    kills_while_starting: int = 0
    records_acknowledged: int = 0
    permits_handed_out: int = 0
    checkpoints_heard: int = 0
    log_entries: int = 0
    records_lost: int = 0
    gaps: int = 0
    forks: int = 0
    permits_unprovable: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def is_sound(self) -> bool:
        return not (self.records_lost or self.gaps or self.forks or self.permits_unprovable or self.problems)


def soak(folder: Path, kills: int, progress: Callable[[int], None] | None = None, seed: int | None = None) -> Result:
    """Go on in `folder` until so many kills were done in all; then compare. The folder is made if it is missing."""
    site = _site(folder)
    done = sum(1 for heard in _heard(folder) if "kill" in heard)
    with (folder / "heard.jsonl").open("a", encoding="utf-8") as file:
        driver = _Driver(site, file, folder / "gateway.log", random.Random(seed))
        for number in range(done, kills):
            trio.run(driver.one_life)
            if progress is not None:
                progress(number + 1)
    return compare(folder, site)


def compare(folder: Path, site: Site) -> Result:
    """What was heard against what is in the log, after a last recovery."""
    result = Result()
    key = read_private_key(site.certs / "gateway" / "log.key")
    with Log.open(site.log, LogSigner(site.log_origin, key)) as log:  # type: ignore[arg-type]
        for heard in _heard(folder):
            match heard:
                case {"kill": state}:
                    result.kills += 1
                    result.kills_while_starting += state == "starting"
                case {"record": index, "says": says}:
                    result.records_acknowledged += 1
                    result.records_lost += not _is_there(log, index, says)
                case {"permit": token}:
                    result.permits_handed_out += 1
                    result.permits_unprovable += not _is_provable(site, log, token)
                case {"checkpoint": text}:
                    result.checkpoints_heard += 1
                    result.forks += not _is_continued(site, log, text)
        result.log_entries = log.size
    verdict = verify_log(site.log, [site.vkey])
    result.problems = [f"{one.index}: {one.what}" for one in verdict.problems][:20]
    result.gaps = sum(
        "number" in one.what or "missing" in one.what or "ends here" in one.what for one in verdict.problems
    )
    return result


def _is_there(log: Log, index: int, says: str) -> bool:
    """Whether the record of this index is the acknowledged one: it holds what the answer named."""
    try:
        return says.encode() in log.entry(index)
    except (IndexError, AuditError):
        return False


def _is_provable(site: Site, log: Log, token: str) -> bool:
    try:
        permit = verify_permit(token, [PermitKey.from_pem((site.certs / "gateway" / "permit.pub").read_bytes())])
        checkpoint = open_checkpoint(permit.proof.checkpoint, [LogVerifier.parse(site.vkey)])
        entry = proof_entry(permit)
        path = permit.proof.path_hashes()
        verify_inclusion(leaf_hash(entry), permit.proof.index, checkpoint.size, path, checkpoint.root)
        log.require_extends(checkpoint)
        return log.entry(permit.proof.index) == entry
    except (PermitRefused, AuditError, IndexError):
        return False


def _is_continued(site: Site, log: Log, text: str) -> bool:
    try:
        log.require_extends(open_checkpoint(text, [LogVerifier.parse(site.vkey)]))
    except AuditError:
        return False
    return True


def _heard(folder: Path) -> Iterator[dict[str, Any]]:
    path = folder / "heard.jsonl"
    if path.exists():
        with path.open(encoding="utf-8") as file:
            for line in file:
                if line.endswith("\n"):  # the last one may be torn: this program may have been killed, too
                    yield json.loads(line)


def _site(folder: Path) -> Site:
    directory = folder / "site"
    if (directory / "gateway.toml").exists():
        return Site(directory, "bank.example", "sealane.example/demo", {})
    folder.mkdir(parents=True, exist_ok=True)
    site = lay_out_site(
        directory,
        hosts=[HostPlan(name, f"127.0.0.{number}:7443") for number, name in enumerate(("a", "b"), 2)],
        vms=[VmPlan(f"vm-{number}", str(UUID(int=(1 << 100) + number)), "a") for number in range(VMS)],
        now=datetime.now(UTC),
        password_cost=ScryptCost(14, 8, 1),
    )
    text = site.gateway_config.read_text().replace("lifetime_seconds = 60", f"lifetime_seconds = {PERMIT_SECONDS}")
    site.gateway_config.write_text(text.replace("session_seconds = 3600", f"session_seconds = {PERMIT_SECONDS}"))
    return site


class _Driver:
    """Lives of the gateway, one after the other."""

    def __init__(self, site: Site, heard: TextIO, log: Path, luck: random.Random) -> None:
        self._site = site
        self._heard = heard
        self._log = log
        self._luck = luck
        self._vm = luck.randrange(VMS)
        self._awaited, self._heard_enough = 0, trio.Event()
        self._people = LocalDirectory.load(site.people).people

    async def one_life(self) -> None:
        """Start it, load it, kill it."""
        state = "serving"
        async with life_of_gateway(self._site.gateway_config, self._log) as output:
            if self._luck.randrange(8) == 0:
                state = "starting"
                with trio.move_on_after(self._luck.uniform(0.0, MAX_STARTING_SECONDS)):
                    await self._ready(output)
            else:
                await self._load(await self._ready(output))
        self._note({"kill": state})

    async def _ready(self, output: trio.abc.ReceiveStream) -> str:
        line = b""
        with trio.fail_after(START_SECONDS):
            while not line.endswith(b"\n"):
                part = await output.receive_some()
                if not part:
                    raise RuntimeError("the gateway did not start: see gateway.log")
                line += part
        return f"https://{json.loads(line)['listen']}"

    async def _load(self, url: str) -> None:
        with trio.move_on_after(START_SECONDS) as life:
            async with trio.open_nursery() as nursery:
                await self._poll(url, 0)  # from here on the gateway counts the source host as reachable
                nursery.start_soon(self._end, life)
                for _ in range(CHECKERS):
                    nursery.start_soon(self._check, url)
                for _ in range(MOVERS):
                    nursery.start_soon(self._move, url)
                nursery.start_soon(self._take_permits, url)
                nursery.start_soon(self._ask_for_checkpoints, url)

    async def _end(self, life: trio.CancelScope) -> None:
        """After a random time under load, but on a slow machine not before a random number of records was heard of."""
        self._awaited, self._heard_enough = self._luck.randrange(MAX_AWAITED), trio.Event()
        await trio.sleep(self._luck.uniform(0.05, MAX_ALIVE_SECONDS))
        if self._awaited > 0:
            await self._heard_enough.wait()
        life.cancel()

    async def _check(self, url: str) -> None:
        async with self._client(url, "alice") as client:
            while True:
                reason = f"soak {self._luck.getrandbits(64):016x}"
                body = {"vm": self._next_vm(), "destination": "b", "reason": reason}
                answer = await client.post("/v1/decisions", json=body)
                self._note({"record": answer.raise_for_status().json()["record_index"], "says": reason})

    async def _move(self, url: str) -> None:
        async with self._client(url, "alice") as client:
            while True:
                answer = await client.post("/v1/migrations", json={"vm": self._next_vm(), "destination": "b"})
                document = answer.json()
                if answer.status_code in {201, 409, 503} and "record_index" in document:
                    # 409 and 503 with a record: allowed, but not now (the VM moves, the relay's queue is full).
                    self._note({"record": document["record_index"], "says": document["migration_id"]})
                elif document.get("error", {}).get("code") != "relay_unreachable":
                    # A queue that fills after the record answers with no index: nothing was acknowledged then.
                    answer.raise_for_status()

    async def _take_permits(self, url: str) -> None:
        while True:
            await self._poll(url, 5)

    async def _poll(self, url: str, wait_seconds: int) -> None:
        async with self._client(url, None) as client:
            answer = await client.post("/v1/relay/poll", json={"wait_seconds": wait_seconds})
            for assignment in answer.raise_for_status().json()["assignments"]:
                self._note({"permit": assignment["permit"]})

    async def _ask_for_checkpoints(self, url: str) -> None:
        async with self._client(url, "carol") as client:
            while True:
                answer = await client.get("/v1/checkpoint")
                self._note({"checkpoint": answer.raise_for_status().json()["checkpoint"]})
                await trio.sleep(0.05)

    def _client(self, url: str, username: str | None) -> httpx.AsyncClient:
        context = ssl.create_default_context(cafile=str(self._site.ca))
        headers = {}
        if username is None:
            folder = self._site.host_folder("a")
            context.load_cert_chain(folder / "host.pem", folder / "host.key")
        else:
            key = read_private_key(self._site.directory / "token.key")
            assert isinstance(key, ec.EllipticCurvePrivateKey)
            token = issue_token(self._people[username], key, LOCAL_ISSUER, AUDIENCE, int(time.time()), 900)
            headers["authorization"] = f"Bearer {token}"
        return httpx.AsyncClient(
            base_url=url, verify=context, headers=headers, trust_env=False, timeout=REQUEST_SECONDS
        )

    def _next_vm(self) -> str:
        self._vm = (self._vm + 1) % VMS
        return f"vm-{self._vm}"

    def _note(self, heard: dict[str, Any]) -> None:
        self._heard.write(json.dumps(heard) + "\n")
        self._heard.flush()
        self._awaited -= "record" in heard
        if self._awaited <= 0:
            self._heard_enough.set()


def as_json(result: Result) -> str:
    return json.dumps(asdict(result))
