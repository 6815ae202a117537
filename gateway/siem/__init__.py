"""Delivery in the running gateway: a task for each receiver, beside admission and never in its way.

    tables.py       what an operator says of each receiver, checked at start
    receivers.py    a table and its secret files → a sink
    line_*.py       the same for receivers that take lines
    delivery.py     runs the sinks, isolates them, records what befalls them
    jobs.py         what takes long and is asked for: resending, reconciling

Specified in docs/siem.md.
"""
