"""What a requester may ask for: a ticket, some minutes, a reason; checked before anything is decided or recorded."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from gateway.errors import RequestRefused
from policy.errors import FactRefused
from policy.facts import check_text

MAX_REASON: Final = 500
_TICKET: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/#-]{0,63}")


@dataclass(frozen=True, slots=True)
class Wish:
    """Names as the requester wrote them."""

    vm: str
    destination: str
    ticket: str
    minutes: int
    reason: str
    ports: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class WishRules:
    """`ticket`: what the site's tickets look like, beyond being one plain word."""

    max_minutes: int
    answer_minutes: int
    max_pending: int
    max_pending_per_person: int
    ticket: re.Pattern[str] | None = None


def check_wish(wish: Wish, rules: WishRules) -> None:
    """Raises RequestRefused, saying what to correct."""
    if _TICKET.fullmatch(wish.ticket) is None:
        raise RequestRefused("the ticket must be 1 to 64 letters, digits and . _ / # -")
    if rules.ticket is not None and rules.ticket.fullmatch(wish.ticket) is None:
        raise RequestRefused("this is not what a ticket of this site looks like")
    if not 1 <= wish.minutes <= rules.max_minutes:
        raise RequestRefused(f"minutes must be 1 to {rules.max_minutes}")
    if not wish.reason.strip() or len(wish.reason) > MAX_REASON:
        raise RequestRefused(f"breaking glass needs a reason of at most {MAX_REASON} characters")
    check_reason(wish.reason)


def check_reason(reason: str | None) -> None:
    """One line of plain text, or none. Raises RequestRefused."""
    try:
        if reason is not None:
            check_text("reason", reason)
    except FactRefused as error:
        raise RequestRefused(str(error)) from error
