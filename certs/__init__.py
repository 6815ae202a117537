"""Certificates of hosts: who is at the other end of a control connection, and how sure we are.

This package owns one rule: a peer is exactly one canonical SPIFFE id, in a certificate that two independent
verifiers accept, whose whole path is covered by fresh CRLs, seen in one full TLS 1.3 handshake with a hybrid
key exchange. Everything else is refused and the peer is not told why. It holds the file CA that issues such
certificates too. Specified in docs/wire-protocol.md, section 2.
"""
