"""What an operator says of each receiver: the tables `[[siem.sinks]]`, by `kind`, decoded and checked at start."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from gateway.errors import NotKnown, NotSetUp
from gateway.siem.line_tables import FileTable, RelpTable, SplunkTable, SyslogTable, WebhookTable
from gateway.siem.sink_table import SinkTable, Text, require_https

MAX_SINKS: Final = 16
INDEX_NAME: Final = "1 to 64 of a-z, 0-9 and -, with no - in front"


def unknown_sink(name: str, known: Collection[str]) -> NotKnown:
    """What to answer whoever names a sink that is none of the `known` ones."""
    if not known:
        return NotSetUp("this gateway delivers to no SIEM", "[[siem.sinks]]")
    return NotKnown(f"no sink is called {name}", next_step=f"the sinks are: {', '.join(known)}")


class ElasticsearchTable(SinkTable, frozen=True, kw_only=True, tag="elasticsearch"):
    """Either an API key (one line, file mode 0600) or a client certificate.

    `indices`: the beginning of their names; `lifecycle`: the cluster's policy that they follow. `trust_bundle`: PEM, by
    default what the system trusts.
    """

    # Each request costs the server an fsync, and the end of a batch a wait: larger ones than others take.
    batch_entries: Annotated[int, Meta(ge=1, le=5_000)] = 2_000
    url: Text
    api_key_file: Text | None = None
    certificate: Text | None = None
    private_key: Text | None = None
    trust_bundle: Text | None = None
    indices: Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,63}\Z", description=INDEX_NAME)] = "sealane-audit"
    lifecycle: Text | None = None

    def check(self) -> None:
        """See SinkTable."""
        super().check()
        require_https(self.url)
        if (self.certificate is None) != (self.private_key is None):
            raise ValueError("certificate: needs `private_key`, and the other way round")
        if (self.api_key_file is None) == (self.certificate is None):
            raise ValueError("api_key_file: give it or a `certificate`, and not both")


# One more receiver: its table here, and how it is made in `receivers.py`.
AnySinkTable = ElasticsearchTable | FileTable | RelpTable | SplunkTable | SyslogTable | WebhookTable


class SiemTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """All receivers of this gateway's log."""

    sinks: Annotated[tuple[AnySinkTable, ...], Meta(max_length=MAX_SINKS)] = ()

    def check(self) -> None:
        """Raises ValueError, naming sink and key."""
        names = [sink.name for sink in self.sinks]
        if len(set(names)) != len(names):
            raise ValueError("two sinks have the same name")
        for sink in self.sinks:
            try:
                sink.check()
            except ValueError as error:
                raise ValueError(f"{sink.name[:64]}: {error}") from error
