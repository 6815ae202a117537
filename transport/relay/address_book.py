"""The address book as a relay keeps it: hosts by SPIFFE id, by name and by libvirt's name, and where to reach them.

It comes from the gateway over mutual TLS, is kept in `state_dir/address-book.json`, and is used while the gateway is
away; its age is known. An address is where to knock, never who is there: certificate and permit say that.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final

import msgspec
import structlog
from msgspec import Meta

from certs.files import write_atomically
from transport.errors import ConfigurationError
from transport.relay.config import split_address

MAX_HOSTS: Final = 10_000
MAX_BYTES: Final = 8 * 1024 * 1024
REWRITE_SECONDS: Final = 900
FILE_NAME: Final = "address-book.json"

log = structlog.get_logger("sealane.relay")


class Reach(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One address of a host's relay. `device` and `dscp`: how that host's own streams leave it."""

    address: Annotated[str, Meta(min_length=3, max_length=261)]
    device: Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]{1,15}$")] | None = None
    dscp: Annotated[int, Meta(ge=0, le=63)] | None = None


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One host. `addresses`: best first."""

    spiffe_id: Annotated[str, Meta(max_length=255)]
    name: Annotated[str, Meta(max_length=63)]
    libvirt_name: Annotated[str, Meta(max_length=253, pattern=r"\A[A-Za-z0-9.-]+\Z")]  # goes into a file of hosts
    addresses: Annotated[tuple[Reach, ...], Meta(min_length=1, max_length=8)]


class _Document(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    version: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$")]
    hosts: Annotated[tuple[Entry, ...], Meta(max_length=MAX_HOSTS)]
    fetched: Annotated[int, Meta(ge=0)] = 0  # unix seconds; ours, not the gateway's


@dataclass(frozen=True, slots=True)
class AddressBook:
    """`fetched`: when the gateway gave or confirmed it, unix seconds; 0 for the empty book that nobody gave."""

    version: str = ""
    hosts: tuple[Entry, ...] = ()
    fetched: int = 0
    _by_name: dict[str, Entry] = field(default_factory=dict, repr=False, compare=False)
    _numbers: frozenset[str] = field(default=frozenset(), repr=False, compare=False)

    @classmethod
    def decode(cls, data: bytes, fetched: int | None = None) -> AddressBook:
        """Strictly. Raises ValueError (msgspec's errors are) for anything that is not a book as a whole."""
        document = msgspec.json.decode(data, type=_Document)
        by_name: dict[str, Entry] = {}
        numbers: set[str] = set()
        for entry in document.hosts:
            for each in entry.addresses:
                try:
                    numbers.add(split_address(each.address, entry.name)[0])
                except ConfigurationError as error:
                    raise ValueError(str(error)) from None
            for name in {entry.spiffe_id, entry.name, entry.libvirt_name.lower()}:
                if by_name.setdefault(name, entry) is not entry:
                    raise ValueError(f"{name!a} names two hosts")
        when = document.fetched if fetched is None else fetched
        return cls(document.version, document.hosts, when, by_name, frozenset(filter(None, map(_number, numbers))))

    def encode(self) -> bytes:
        return msgspec.json.encode(_Document(self.version, self.hosts, self.fetched))

    def host(self, name: str) -> Entry | None:
        """By SPIFFE id or name, exactly, or by libvirt's name in any case."""
        return self._by_name.get(name) or self._by_name.get(name.lower())

    def knows(self, number: str) -> bool:
        """Whether a host has this IP address. It says nothing of who is there; names are not looked up."""
        return _number(number) in self._numbers

    def age_seconds(self, now: int) -> int | None:
        """How old it is; None if there is none."""
        return max(0, now - self.fetched) if self.fetched else None


def _number(host: str) -> str | None:
    """An IP address in its one spelling; None for a name."""
    try:
        found = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return str(mapped or found)


class AddressBookFile:
    """The book in force, and its copy on the disk. What cannot be read there is as good as none, and is said."""

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / FILE_NAME
        self.book = self._written = self._load()

    def knows(self, number: str) -> bool:
        """See `AddressBook.knows`, of the book in force."""
        return self.book.knows(number)

    def keep(self, book: AddressBook) -> None:
        """Put it in force and on the disk (blocking). OSError leaves it in force, and the older copy on the disk.

        What was only confirmed is written once in a while: its age after a restart is then a little too high.
        """
        self.book = book
        if book.version != self._written.version or book.fetched - self._written.fetched >= REWRITE_SECONDS:
            write_atomically(self._path, book.encode(), 0o600)
            self._written = book

    def _load(self) -> AddressBook:
        try:
            with self._path.open("rb") as file:
                data = file.read(MAX_BYTES + 1)
            if len(data) > MAX_BYTES:
                raise ValueError(f"is larger than {MAX_BYTES >> 20} MiB")
            return AddressBook.decode(data)
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as error:
            log.warning("the kept address book is not used", path=str(self._path), cause=str(error))
        return AddressBook()
