"""The query index's tables: how each field of the query language is stored. A projection; `index.py` fills it.

records(position, …)   a row for each entry of the log; repeated texts as their number in `texts`
texts(id, text)        every folded text that a record held in a field of few values
sentences(id, text)    reasons and denials, as words with a space between them
sets, members          groups and policies: which combinations there are, and which texts are in them
tallies(field, id, n)  in how many records a text (or set) stands in a field: exact, so that a plan needs no guess
zones(zone, low, high) the times within each ZONE_WIDTH entries: times rise with the position, but for clock steps
state                  which log this is of, and how far it got
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

from audit import index_arrivals
from audit.query import fields as f
from audit.query.fields import Atom

INDEX_VERSION: Final = 3  # an index of another version is rebuilt: it is a copy
ZONE_WIDTH: Final = 4096


class Store(Enum):
    """How a field's value stands in its column of `records`."""

    TEXT = "number of a text"
    SET = "number of a set of texts"
    SENTENCE = "number of a sentence"
    INLINE = "the text itself"  # ids, each of which stands in a few records only
    INTEGER = "the integer itself"


@dataclass(frozen=True, slots=True)
class Column:
    """Where `atom` is stored. `number` names it in `tallies`, and may never be given to another column."""

    atom: Atom
    name: str
    store: Store
    number: int
    indexed: bool = False

    @property
    def index_name(self) -> str:
        return f"by_{self.name}"


COLUMNS: Final = (
    Column(f.TIME, "time", Store.INTEGER, 1),
    Column(f.KIND, "kind", Store.TEXT, 2, indexed=True),
    Column(f.OUTCOME, "outcome", Store.TEXT, 3, indexed=True),
    Column(f.MIGRATION, "migration", Store.INLINE, 4, indexed=True),
    Column(f.VM_ID, "vm_id", Store.TEXT, 5, indexed=True),
    Column(f.VM_NAME, "vm_name", Store.TEXT, 6, indexed=True),
    Column(f.SOURCE_ID, "source_id", Store.TEXT, 7),
    Column(f.SOURCE_NAME, "source_name", Store.TEXT, 8, indexed=True),
    Column(f.DESTINATION_ID, "destination_id", Store.TEXT, 9),
    Column(f.DESTINATION_NAME, "destination_name", Store.TEXT, 10, indexed=True),
    Column(f.WHO_ID, "who_id", Store.TEXT, 11, indexed=True),
    Column(f.WHO_NAME, "who_name", Store.TEXT, 12, indexed=True),
    Column(f.LOGIN, "login", Store.TEXT, 13),
    Column(f.ISSUER, "issuer", Store.TEXT, 14),
    Column(f.GROUP, "groups_set", Store.SET, 15, indexed=True),
    Column(f.REASON, "reason", Store.SENTENCE, 16, indexed=True),
    Column(f.WHY, "why", Store.SENTENCE, 17, indexed=True),
    Column(f.POLICY, "policies_set", Store.SET, 18, indexed=True),
    Column(f.BUNDLE, "bundle", Store.TEXT, 19),
    Column(f.TICKET, "ticket", Store.TEXT, 20, indexed=True),
    Column(f.CLIENT, "client", Store.TEXT, 21),
    Column(f.PERMIT, "permit", Store.INLINE, 22, indexed=True),
    Column(f.ROLE, "role", Store.TEXT, 23),
    Column(f.TLS, "tls", Store.TEXT, 24),
    Column(f.BYTES, "bytes", Store.INTEGER, 25),
    Column(f.DOWNTIME, "downtime", Store.INTEGER, 26),
    Column(f.BOOT, "boot", Store.TEXT, 27),
)
COLUMN_OF: Final = {column.atom: column for column in COLUMNS}
# A host's name is the end of its id: what asks for an id can use the index of the names.
NAME_OF_ID: Final = {f.SOURCE_ID: f.SOURCE_NAME, f.DESTINATION_ID: f.DESTINATION_NAME}

_TYPES = {Store.INLINE: "TEXT"}

TABLES: Final = (
    index_arrivals.TABLE
    + f"""
CREATE TABLE IF NOT EXISTS state (
    one INTEGER PRIMARY KEY CHECK (one = 1), version INTEGER NOT NULL, origin TEXT NOT NULL, size INTEGER NOT NULL,
    last BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS texts (id INTEGER PRIMARY KEY, text TEXT NOT NULL UNIQUE);
CREATE TABLE IF NOT EXISTS sentences (id INTEGER PRIMARY KEY, text TEXT NOT NULL UNIQUE);
CREATE TABLE IF NOT EXISTS sets (id INTEGER PRIMARY KEY, texts TEXT NOT NULL UNIQUE);
CREATE TABLE IF NOT EXISTS members (text INTEGER, id INTEGER, PRIMARY KEY (text, id)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS tallies (field INTEGER, id INTEGER, n INTEGER, PRIMARY KEY (field, id)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS zones (zone INTEGER PRIMARY KEY, low INTEGER NOT NULL, high INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS records (
    position INTEGER PRIMARY KEY,
    {", ".join(f"{column.name} {_TYPES.get(column.store, 'INTEGER')}" for column in COLUMNS)}
);
"""
)
# Partial: a field that a record lacks needs no place in its index. `time` covers the histogram.
INDEXES: Final = (
    "".join(
        f"CREATE INDEX IF NOT EXISTS {column.index_name} ON records ({column.name}) WHERE {column.name} IS NOT NULL;\n"
        for column in COLUMNS
        if column.indexed
    )
    + "CREATE INDEX IF NOT EXISTS by_time ON records (time, kind, outcome);\n"
)
# Columns that hold the number of something, and those that hold it: `INSERT` takes the former, position, the latter.
TERMS: Final = tuple(column for column in COLUMNS if column.store in {Store.TEXT, Store.SET, Store.SENTENCE})
PLAIN: Final = tuple(column for column in COLUMNS if column.store in {Store.INLINE, Store.INTEGER})
_INSERTED = [*(column.name for column in TERMS), "position", *(column.name for column in PLAIN)]
INSERT: Final = f"INSERT INTO records ({', '.join(_INSERTED)}) VALUES ({', '.join('?' * len(_INSERTED))})"  # noqa: S608
