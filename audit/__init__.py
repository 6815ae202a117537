"""The audit log: an append-only RFC 6962 Merkle tree of signed records, in the C2SP on-disk formats.

It owns one rule: *nothing is acknowledged before it is durable under a signed checkpoint*, and nothing
acknowledged can change, vanish or be added to without an outsider seeing it. The writer is `log.py`
(`record.py`, `merkle.py`, `checkpoint.py`, `tiles.py`, `disk.py` are its parts); relays need only `proof.py`
and `checkpoint.py`; auditors need only `verify.py`, which shares no code with the writer; `index.py` is a
SQLite projection for queries that can be thrown away. Specified in docs/audit-log.md.
"""
