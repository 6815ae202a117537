"""Measurements of Sealane against what people use today, on this machine, in interleaved rounds.

`python -m bench` (or `make bench`) prints tables and writes `bench/results/<area>.json`. The machine drifts by a
factor of two within an hour, so contenders take turns within each round and only ratios within a round count.
"""
