"""Other sites: their gateways ask this one for what arrives here, and this one asks theirs for what leaves.

Each site decides by its own policy and logs its own half. What the other one says of VMs, hosts and persons is its
word: facts with the source `site/<name>`, persons with its trust domain as their issuer. See docs/sites.md.
"""
