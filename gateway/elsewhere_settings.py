"""`[[peers]]` of a gateway's configuration: the other gateways of its site."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

Text = Annotated[str, Meta(min_length=1, max_length=255)]


class PeerTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Another gateway of this site; `permit_keys` and `log_keys` are files, pinned here as at the relays."""

    name: Text
    permit_keys: Annotated[tuple[Text, ...], Meta(min_length=1, max_length=8)]
    log_keys: Annotated[tuple[Text, ...], Meta(min_length=1, max_length=8)]
