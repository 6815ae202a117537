"""The one query language of the audit log: Lucene's syntax, our own fields, the same answer wherever it is asked.

A text is parsed once (`parse.py`) into a neutral tree (`tree.py`) over stored fields (`fields.py`); what a record
holds in them is said in one place (`facets.py`). Each back end translates the tree: SQLite (`sql.py`), Python
(`evaluate.py`, the reference), and Elasticsearch (`audit/siem`). It owns the rule that *a query filters everything,
never a page*, and that all back ends agree to the last record. Specified in docs/audit-queries.md.
"""

from audit.query.evaluate import matches
from audit.query.facets import Facets, facets_of
from audit.query.fields import ATOMS, NAMES, Atom, Kind
from audit.query.parse import parse
from audit.query.terms import terms
from audit.query.tree import All, And, Between, Has, Is, Like, Node, Not, Or, Phrase, Query

__all__ = [
    "ATOMS",
    "NAMES",
    "All",
    "And",
    "Atom",
    "Between",
    "Facets",
    "Has",
    "Is",
    "Kind",
    "Like",
    "Node",
    "Not",
    "Or",
    "Phrase",
    "Query",
    "facets_of",
    "matches",
    "parse",
    "terms",
]
