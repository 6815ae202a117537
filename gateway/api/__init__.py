"""The gateway's HTTPS interface: who is speaking, what they said, and our answer in JSON.

It owns one rule: whoever speaks is known by a verified token (people) or a verified client certificate (relays)
before anything else happens, and everything that is read from them is bounded in size and time. What is asked is
decided elsewhere (`gateway.admission`, `gateway.reading`). `GET /openapi.json` describes it.
"""
