"""Token buckets: what a requester can make us spend (password hashes, records, decisions) is bounded."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

KEYS: Final = 10_000


@dataclass(slots=True)
class Bucket:
    """`tokens` as of the clock's `at`; `left_out`: what was not admitted and is yet to be told of."""

    tokens: float
    at: float
    left_out: int = 0

    def take(self) -> bool:
        """One token, if there is one."""
        if self.tokens < 1:
            return False
        self.tokens -= 1
        return True


class Throttle:
    """For each key `burst` at once and one more every `seconds`. Remembers at most `keys` of them.

    With more keys than that the least recently used is forgotten, and has all of its burst again: an attacker who can
    speak from so many addresses is held by a second throttle with one key for all.
    """

    def __init__(self, burst: int, seconds: float, clock: Callable[[], float], keys: int = KEYS) -> None:
        self._burst = float(burst)
        self.seconds = seconds
        self._clock = clock
        self._keys = keys
        self._buckets: OrderedDict[str, Bucket] = OrderedDict()

    def admits(self, key: str) -> bool:
        """Take one token of `key`, if there is one."""
        return self.bucket(key).take()

    def bucket(self, key: str) -> Bucket:
        """That of `key`, filled as of now."""
        now = self._clock()
        bucket = self._buckets.pop(key, None) or Bucket(self._burst, now)
        bucket.tokens = min(self._burst, bucket.tokens + (now - bucket.at) / self.seconds)
        bucket.at = now
        self._buckets[key] = bucket
        if len(self._buckets) > self._keys:
            self._buckets.popitem(last=False)
        return bucket
