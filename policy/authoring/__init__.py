"""What policy authors do with a bundle before it is in force: check, format, test, explain, compare, begin one.

All of it works offline on the bundle's files, and decides with the code that the gateway decides with
(`policy.decision.evaluate`). A bundle is hostile input here, too: it may come from a pull request.
"""
