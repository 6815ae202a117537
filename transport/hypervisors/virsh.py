"""Asking libvirt through its own command, `virsh`, read-only and with deadlines; why not a binding: docs/adr/ (hosts).

Its output is read strictly: what does not look as libvirt 9 to 11 print it is refused as a whole, never guessed at.
"""

from __future__ import annotations

import re
import secrets
import subprocess
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import trio

from transport.hypervisors.errors import (
    HypervisorGarbled,
    HypervisorRefused,
    HypervisorTimeout,
    HypervisorUnreachable,
)

MAX_OUTPUT: Final = 8 * 1024 * 1024
MAX_LINE: Final = 64 * 1024
XMLS_AT_ONCE: Final = 16
_EVENT: Final = re.compile(r"event 'lifecycle' for domain '(.*)': (\w+) (\w+)")
_LISTED: Final = re.compile(r"([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}) (.+)")
_DOMAIN: Final = re.compile(r"Domain: '(.*)'")
_STATE: Final = re.compile(r"  state\.(state|reason)=([0-9]{1,4})")
_ENVIRONMENT: Final = {"LC_ALL": "C", "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}


@dataclass(frozen=True, slots=True)
class LibvirtDomain:
    """An active domain: libvirt's name, and its numbers for state and reason (virDomainState, virDomain…Reason)."""

    uuid: str
    name: str
    state: int
    reason: int


@dataclass(frozen=True, slots=True)
class Lifecycle:
    """One lifecycle event, such as ("web", "Started", "Migrated")."""

    name: str
    event: str
    detail: str


class Virsh:
    """One libvirt, by its URI. `program`: the command's name or path."""

    def __init__(self, uri: str, program: str = "virsh", seconds: float = 10.0) -> None:
        self._program = program
        self._uri = uri
        self._seconds = seconds

    def _command(self, *arguments: str, read_only: bool = True) -> list[str]:
        connection = ["--readonly"] if read_only else []
        return [self._program, *connection, "--quiet", "--connect", self._uri, *arguments]

    async def ask(self, *arguments: str, read_only: bool = True) -> str:
        """What one virsh command prints. Raises HypervisorUnreachable, HypervisorTimeout, HypervisorRefused.

        `read_only` is False for the few questions that libvirt answers to nobody else, though they change nothing.
        """
        what = arguments[0]
        try:
            with trio.fail_after(self._seconds):
                done = await trio.run_process(
                    self._command(*arguments, read_only=read_only),
                    capture_stdout=True,
                    capture_stderr=True,
                    check=False,
                    env=_ENVIRONMENT,
                )
        except OSError as error:
            raise HypervisorUnreachable(f"virsh cannot be run: {error.strerror}") from None
        except trio.TooSlowError:
            raise HypervisorTimeout(f"virsh {what}: no answer within {self._seconds:g} s") from None
        if done.returncode != 0:
            said = " ".join(done.stderr.decode(errors="replace").split())[:300]
            if "failed to connect to the hypervisor" in said:
                raise HypervisorUnreachable(f"libvirt does not answer: {said}")
            raise HypervisorRefused(f"virsh {what}", "", said or f"exit code {done.returncode}")
        if len(done.stdout) > MAX_OUTPUT:
            raise HypervisorGarbled(f"virsh {what} printed more than {MAX_OUTPUT >> 20} MiB")
        try:
            return done.stdout.decode()
        except UnicodeDecodeError:
            raise HypervisorGarbled(f"virsh {what} printed what is not UTF-8") from None

    async def domains(self) -> list[LibvirtDomain]:
        """All active domains, from one virsh: the list and the states fit together, or it is asked again next time."""
        return parse_domains(await self.ask("list --uuid --name; domstats --state --list-active"))

    async def domain_xml(self, uuid: str) -> str:
        return await self.ask("dumpxml", uuid)

    async def domain_xmls(self, uuids: Sequence[str]) -> dict[str, str]:
        """The XML of each that is still there, `XMLS_AT_ONCE` from one virsh: of a start's 14 ms of CPU each takes 0.2.

        What stands between them is drawn anew each time, so no domain's description can hold it.
        """
        found: dict[str, str] = {}
        for batch in batched(uuids, XMLS_AT_ONCE):
            mark = secrets.token_hex(16)
            said = await self.ask("; ".join(f"dumpxml {uuid}; echo {mark}" for uuid in batch))
            *printed, rest = said.split(mark)
            if len(printed) != len(batch) or rest.strip():
                raise HypervisorGarbled("virsh dumpxml: not one answer for each domain")
            found |= {uuid: xml.strip() for uuid, xml in zip(batch, printed, strict=True) if xml.strip()}
        return found

    @asynccontextmanager
    async def lifecycle_events(self) -> AsyncIterator[AsyncIterator[Lifecycle]]:
        """Events as they come, until virsh ends (libvirtd went away, say). Raises HypervisorUnreachable."""
        command = self._command("event", "--loop", "--event", "lifecycle")
        try:
            process = await trio.lowlevel.open_process(
                command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=_ENVIRONMENT
            )
        except OSError as error:
            raise HypervisorUnreachable(f"virsh cannot be run: {error.strerror}") from None
        assert process.stdout is not None
        try:
            yield _events(process.stdout)
        finally:
            process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()
                await process.stdout.aclose()


async def _events(stream: trio.abc.ReceiveStream) -> AsyncIterator[Lifecycle]:
    rest = b""
    async for data in stream:
        *lines, rest = (rest + data).split(b"\n")
        if len(rest) > MAX_LINE:
            return  # no event is that long: begin anew
        for line in lines:
            if (event := parse_event(line.decode(errors="replace"))) is not None:
                yield event


def batched(items: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    return (items[at : at + size] for at in range(0, len(items), size))


def parse_event(line: str) -> Lifecycle | None:
    match = _EVENT.fullmatch(line)
    return Lifecycle(match[1], match[2], match[3]) if match else None


def parse_domains(text: str) -> list[LibvirtDomain]:
    """From `list --uuid --name` and `domstats --state`, one after the other. HypervisorGarbled for anything else."""
    uuids: dict[str, str] = {}
    states: dict[str, dict[str, int]] = {}
    name = ""
    for line in text.splitlines():
        if not line:
            continue
        if match := _LISTED.fullmatch(line):
            if states or match[2] in uuids:
                raise HypervisorGarbled("virsh list: a domain twice, or out of place")
            uuids[match[2]] = match[1]
        elif match := _DOMAIN.fullmatch(line):
            name = match[1]
            states[name] = {}
        elif (match := _STATE.fullmatch(line)) and name:
            states[name][match[1]] = int(match[2])
        else:
            raise HypervisorGarbled(f"virsh printed {line[:100]!a}")
    found = []
    for name, uuid in uuids.items():
        numbers = states.get(name)
        if numbers is None:
            continue  # it ended between the two
        if set(numbers) != {"state", "reason"}:
            raise HypervisorGarbled("virsh domstats: state or reason is missing")
        found.append(LibvirtDomain(uuid, name, numbers["state"], numbers["reason"]))
    return found
