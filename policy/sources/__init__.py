"""Where the inventory comes from: files, documents over HTTPS, NetBox; each read again and again, given up when old.

The rule it owns: a fact is as old as the last time that its source confirmed it, and a source that has been silent for
longer than its limit says nothing any more. `told`, `inventory` (one level up) are pure; here are the trio shells.
"""
