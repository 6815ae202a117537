"""Who is asking: tokens of any OpenID Connect issuer, or of the local directory, become a `policy.facts.Person`.

The rule it owns: nothing is believed that a pinned issuer did not sign in the one accepted spelling, and what
the issuer does not say (which groups?) is unknown, never empty. Specified in docs/identity.md. `oidc`, `keys`
and `local` are pure; `jwks` is the thin shell that fetches an issuer's keys.
"""
