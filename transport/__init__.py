"""The sealed lane: wire protocol (sans-IO, in `wire`), relay (trio, in `relay`), hypervisors (`hypervisors`).

Rule that this package owns: no byte of guest state reaches a hypervisor unless it was authenticated, in order, on a
connection whose permit both ends have verified. Specified in docs/wire-protocol.md.
"""
