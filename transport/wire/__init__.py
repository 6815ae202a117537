"""The wire protocol, sans-IO: keys, frames, preface, control messages and their order.

Everything here takes bytes and values and returns bytes and values; it knows no socket, clock or event loop.
A peer's fault is `ProtocolViolation`, ours is `Misuse`. Specified in docs/wire-protocol.md.
"""
