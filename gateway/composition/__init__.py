"""How the gateway is put together at its start: what the configuration names becomes the pieces that `service` runs.

Each module makes one piece, and refuses the start with StartRefused, which names what the operator must correct.
"""
