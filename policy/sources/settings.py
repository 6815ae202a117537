"""What an operator says of the inventory's sources: `[inventory]` and its `[[inventory.sources]]`, checked at start."""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from policy.errors import FactRefused
from policy.facts import check_label
from policy.sources.https import require_https

MAIN: Final = "inventory"  # what the file that `[policy] inventory` names is called as a source

Text = Annotated[str, Meta(min_length=1, max_length=255)]
FieldPath = Annotated[
    str,
    Meta(
        pattern=r"^[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*){0,2}\Z",
        max_length=200,
        description="up to three names of a-z, 0-9 and _ with dots between them, such as custom_fields.zone",
    ),
]
Url = Annotated[str, Meta(min_length=1, max_length=1024)]


class _Source(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="kind"):
    """`name` is what facts call it. Seconds: between two readings, for one reading, and until it is not believed."""

    name: Text
    refresh_seconds: Annotated[int, Meta(ge=1, le=86_400)] = 60
    deadline_seconds: Annotated[int, Meta(ge=1, le=300)] = 10
    max_age_seconds: Annotated[int, Meta(ge=1, le=7 * 86_400)] = 600


class FileTable(_Source, frozen=True, tag="file"):
    """`partial`: entries may leave out what another source tells. `hosts`: it may name hosts."""

    path: Text
    partial: bool = False
    hosts: bool = False


class _HttpsTable(_Source, frozen=True):
    """`trust_bundle`: PEM, by default what the system trusts. `token_file`: mode 0600, one line."""

    url: Url
    trust_bundle: Text | None = None
    token_file: Text | None = None


class HttpTable(_HttpsTable, frozen=True, tag="http"):
    """A JSON document. The token is sent as `Authorization: Bearer`."""

    partial: bool = False
    hosts: bool = False
    max_bytes: Annotated[int, Meta(ge=1024, le=64 * 1024 * 1024)] = 16 * 1024 * 1024


class NetboxTable(_HttpsTable, frozen=True, tag="netbox"):
    """Virtual machines of NetBox; the fields are those of `policy.sources.netbox.NetboxFields`.

    `token_scheme`: the word in front of the token in the `Authorization` header.
    """

    token_scheme: Literal["Token", "Bearer"] = "Token"  # noqa: S105 - no secret
    uuid: FieldPath = "serial"
    zone: FieldPath = "custom_fields.zone"
    classification: FieldPath = "custom_fields.classification"
    host: FieldPath | None = None
    zones: dict[Text, Text] = {}
    classifications: dict[Text, Text] = {}


SourceTable = FileTable | HttpTable | NetboxTable


class InventorySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`sources` in order of precedence, after the file of `[policy] inventory`, which is read every `refresh_seconds`.

    A name that nobody knows makes all be read again, at most once in `ask_again_seconds`; whoever asked for it waits
    for that up to `ask_deadline_seconds`.
    """

    refresh_seconds: Annotated[int, Meta(ge=1, le=86_400)] = 60
    ask_again_seconds: Annotated[int, Meta(ge=1, le=3_600)] = 5
    ask_deadline_seconds: Annotated[int, Meta(ge=1, le=60)] = 5
    sources: Annotated[tuple[SourceTable, ...], Meta(max_length=16)] = ()

    def check(self) -> None:
        """What types cannot say. Raises ValueError, naming the source."""
        names = [MAIN, *(source.name for source in self.sources)]
        if len(set(names)) != len(names):
            raise ValueError(f"two sources have the same name (the file of [policy] is called {MAIN!r})")
        for source in self.sources:
            try:
                check_label("source", source.name)
                if isinstance(source, _HttpsTable):
                    require_https(source.url)
                if isinstance(source, NetboxTable):
                    for label in (*source.zones.values(), *source.classifications.values()):
                        check_label("translation", label)
            except (FactRefused, ValueError) as error:
                raise ValueError(f"{source.name}: {error}") from error
            if source.max_age_seconds <= source.refresh_seconds:
                raise ValueError(f"{source.name}: max_age_seconds must be longer than refresh_seconds")

    @property
    def is_alone(self) -> bool:
        """Is the file of `[policy]` the only source? Then it must tell everything of each VM."""
        return not self.sources
