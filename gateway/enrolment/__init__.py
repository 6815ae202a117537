"""Hosts come, stay and go: one-time tokens, first certificates, renewals, revocations, and the CRLs that relays fetch.

The rule that it owns: a host's name in a certificate comes from a token that a permitted person asked for, or from the
certificate that the host has; never from what a host says. Each step is a record before it takes effect.
"""
