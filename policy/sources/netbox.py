"""NetBox as a source: its virtual machines by the REST API (`/api/virtualization/virtual-machines/`).

Which fields say what is the operator's to configure, as a path into the object: `serial`, `tenant.slug`,
`custom_fields.zone`. NetBox is edited by people, so one bad entry must not take all others away: it is kept with what
is wrong with it, and its VM is unknown. What `next` points to is never followed: pages are asked for by number.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import httpx
import trio

from policy.errors import FactRefused, InventoryRefused, InventoryUnavailable, TokenRefused
from policy.facts import UUID
from policy.jws import decode_object
from policy.sources.https import get
from policy.sources.reading import Pace, Reading, digest_of
from policy.told import Told, ToldVm

PATH: Final = "/api/virtualization/virtual-machines/"
PAGE: Final = 500
MAX_PAGE_BYTES: Final = 16 * 1024 * 1024
MAX_VMS: Final = 100_000
MAX_LIST_BYTES: Final = 256 * 1024 * 1024  # of all pages: a VM takes some 2 KiB
_MAX_DEPTH: Final = 32  # of a page: custom fields may hold JSON of their own
_ATTEMPTS: Final = 2  # a list that changed while it was read is read once more


@dataclass(frozen=True, slots=True)
class NetboxFields:
    """Paths into a virtual machine of NetBox; `host` None: it does not tell. `zones` and `classifications` translate
    what is found there (a tenant's slug, say); what is not in a table that is given is refused.
    """

    uuid: str = "serial"
    zone: str = "custom_fields.zone"
    classification: str = "custom_fields.classification"
    host: str | None = None
    zones: Mapping[str, str] = field(default_factory=dict)
    classifications: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class NetboxSource:
    """`client` from `https.make_client`, with the API token."""

    name: str
    url: str
    client: httpx.AsyncClient
    pace: Pace
    fields: NetboxFields
    tells_hosts: bool = False
    page: int = PAGE

    async def read(self, before: Reading | None) -> Reading:
        for _ in range(_ATTEMPTS):
            pages = await self._pages()
            if pages is None:
                continue
            digest = await trio.to_thread.run_sync(_digest, pages, abandon_on_cancel=True)
            if before is not None and before.digest == digest:
                return before
            told = await trio.to_thread.run_sync(
                partial(read_pages, pages, self.name, self.fields), abandon_on_cancel=True
            )
            if told is not None:
                return Reading(told, digest)
        raise InventoryUnavailable(self.name, "its list of VMs changes faster than it can be read")

    async def _pages(self) -> list[bytes] | None:
        """All pages; None if the list changed meanwhile."""
        pages: list[bytes] = []
        total, offset, size_bytes = None, 0, 0
        while total is None or offset < total:
            asked: dict[str, str | int] = {
                "limit": self.page, "offset": offset, "ordering": "id", "exclude": "config_context",
            }  # fmt: skip
            fetched = await get(self.client, self.name, self.url + PATH, max_bytes=MAX_PAGE_BYTES, parameters=asked)
            assert fetched.body is not None  # without an ETag `get` takes no 304
            count, length = await trio.to_thread.run_sync(_shape, fetched.body, self.name, abandon_on_cancel=True)
            if count > MAX_VMS:
                raise InventoryRefused(self.name, f"has more than {MAX_VMS} VMs")
            if (total is not None and count != total) or (length == 0 and offset < count):
                return None
            pages.append(fetched.body)
            size_bytes += len(fetched.body)
            if size_bytes > MAX_LIST_BYTES:
                raise InventoryRefused(self.name, f"its list is larger than {MAX_LIST_BYTES >> 20} MiB")
            total, offset = count, offset + length
        return pages


def _digest(pages: list[bytes]) -> str:
    return digest_of(b"".join(pages))


def _decode(page: bytes, source: str) -> dict[str, Any]:
    try:
        return decode_object(page, _MAX_DEPTH)
    except TokenRefused as error:
        raise InventoryRefused(source, error.detail) from error


def _shape(page: bytes, source: str) -> tuple[int, int]:
    """How many VMs there are in all, and on this page."""
    document = _decode(page, source)
    count, results = document.get("count"), document.get("results")
    if type(count) is not int or count < 0 or not isinstance(results, list):
        raise InventoryRefused(source, "its answer is no list of NetBox (`count`, `results`): correct `url`")
    return count, len(results)


def read_pages(pages: list[bytes], source: str, fields: NetboxFields) -> Told | None:
    """What the pages tell; None if an entry stands twice, because the list changed. Raises InventoryRefused."""
    vms: dict[str, ToldVm] = {}
    skipped: list[str] = []
    seen: set[Any] = set()
    for entry in (entry for page in pages for entry in _decode(page, source)["results"]):
        if not isinstance(entry, dict) or type(entry.get("id")) is not int:
            raise InventoryRefused(source, "an entry without an id: its answer is no list of NetBox")
        if entry["id"] in seen:
            return None
        seen.add(entry["id"])
        label = f"{str(entry.get('name'))[:100]!a} (id {entry['id']})"
        uuid = _uuid(entry, fields.uuid)
        if UUID.fullmatch(uuid) is None:
            skipped.append(f"VM {label} has no UUID in {fields.uuid}")
        elif uuid in vms:
            vms[uuid] = ToldVm(uuid, refused=f"several VMs have its UUID, one of them is {label}")
        else:
            vms[uuid] = _vm(uuid, entry, fields)
    return Told(vms, {}, tuple(skipped))


def _uuid(entry: Mapping[str, Any], path: str) -> str:
    try:
        return (_text_at(entry, path) or "").lower()
    except ValueError:
        return ""


def _vm(uuid: str, entry: Mapping[str, Any], fields: NetboxFields) -> ToldVm:
    try:
        return ToldVm(
            uuid,
            name=_text_at(entry, "name"),
            zone=_translated("zone", _text_at(entry, fields.zone), fields.zones),
            classification=_translated(
                "classification", _text_at(entry, fields.classification), fields.classifications
            ),
            tags=frozenset(_tags(entry)),
            host=None if fields.host is None else _text_at(entry, fields.host),
        )
    except (FactRefused, ValueError) as error:
        return ToldVm(uuid, refused=str(error))


def _translated(what: str, text: str | None, table: Mapping[str, str]) -> str | None:
    if text is None or not table:
        return text
    if text not in table:
        raise ValueError(f"its {what} {text[:100]!a} is not in the table of the configuration")
    return table[text]


def _tags(entry: Mapping[str, Any]) -> Iterator[str]:
    """By slug: names of tags may hold spaces."""
    tags = entry.get("tags", [])
    if not isinstance(tags, list):
        raise ValueError("its tags are no list")  # noqa: TRY004 - of an answer, not of a caller
    for tag in tags:
        slug = tag.get("slug") if isinstance(tag, dict) else None
        if not isinstance(slug, str):
            raise ValueError("a tag without a slug")  # noqa: TRY004
        yield slug


def _text_at(entry: Mapping[str, Any], path: str) -> str | None:
    """The text at a path; of a choice its value; None where there is nothing. Raises ValueError for anything else."""
    value: Any = entry
    for step in path.split("."):
        value = value.get(step) if isinstance(value, Mapping) else None
    if isinstance(value, Mapping) and "value" in value:
        value = value["value"]
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise ValueError(f"{path} is no text")  # noqa: TRY004
    return value
