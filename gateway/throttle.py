"""Token buckets: what an unauthenticated requester can make us spend (password hashes, records) is bounded."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(slots=True)
class _Bucket:
    tokens: float
    at: float


class Throttle:
    """For each key `burst` at once and one more every `seconds`. Remembers at most `keys` of them.

    With more keys than that the least recently used is forgotten: an attacker who can speak from so many addresses
    is held by a second throttle with one key for all.
    """

    def __init__(self, burst: int, seconds: float, clock: Callable[[], float], keys: int = 10_000) -> None:
        self._burst = burst
        self._seconds = seconds
        self._clock = clock
        self._keys = keys
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    def admits(self, key: str) -> bool:
        """Take one token of `key`, if there is one."""
        now = self._clock()
        bucket = self._buckets.pop(key, None) or _Bucket(float(self._burst), now)
        bucket.tokens = min(float(self._burst), bucket.tokens + (now - bucket.at) / self._seconds)
        bucket.at = now
        self._buckets[key] = bucket
        if len(self._buckets) > self._keys:
            self._buckets.popitem(last=False)
        if bucket.tokens < 1:
            return False
        bucket.tokens -= 1
        return True
