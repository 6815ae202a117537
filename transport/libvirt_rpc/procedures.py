"""Procedure numbers, flags and features of libvirt's remote program that a migration uses. Numbers are libvirt's."""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Final


class Procedure(IntEnum):
    CONNECT_OPEN = 1
    CONNECT_CLOSE = 2
    DOMAIN_DESTROY = 12
    DOMAIN_LOOKUP_BY_NAME = 23
    DOMAIN_LOOKUP_BY_UUID = 24
    DOMAIN_RESUME = 28
    CONNECT_SUPPORTS_FEATURE = 60
    AUTH_LIST = 66
    CONNECT_GET_URI = 110
    DOMAIN_IS_PERSISTENT = 151
    CONNECT_GET_LIB_VERSION = 157
    DOMAIN_GET_JOB_INFO = 163
    DOMAIN_GET_STATE = 212
    DOMAIN_UNDEFINE_FLAGS = 231
    MIGRATE_PREPARE3_PARAMS = 303
    MIGRATE_FINISH3_PARAMS = 306
    REGISTER_CLOSE_CALLBACK = 360
    UNREGISTER_CLOSE_CALLBACK = 361


# What else somebody may try, by its name for whoever reads of it; a number without a name is told as a number.
PROCEDURE_NAMES: Final = {
    **{int(each): each.name.lower() for each in Procedure},
    8: "domain_attach_device",
    9: "domain_create",
    10: "domain_create_xml",
    11: "domain_define_xml",
    13: "domain_detach_device",
    14: "domain_get_xml_desc",
    16: "domain_get_info",
    22: "domain_lookup_by_id",
    27: "domain_reboot",
    33: "domain_shutdown",
    34: "domain_suspend",
    35: "domain_undefine",
    37: "connect_list_domains",
    51: "connect_num_of_domains",
    53: "domain_core_dump",
    54: "domain_restore",
    55: "domain_save",
    59: "connect_get_hostname",
    234: "domain_destroy_flags",
    273: "connect_list_all_domains",
}
# Of these the first argument is the domain: name, UUID, id.
NAMES_DOMAIN_FIRST: Final = frozenset({8, 9, 12, 13, 14, 16, 27, 28, 33, 34, 35, 53, 55, 231, 234})


class MigrateFlag(IntFlag):
    LIVE = 1 << 0
    PEER2PEER = 1 << 1
    TUNNELLED = 1 << 2
    PERSIST_DEST = 1 << 3
    UNDEFINE_SOURCE = 1 << 4
    PAUSED = 1 << 5
    NON_SHARED_DISK = 1 << 6
    NON_SHARED_INC = 1 << 7
    CHANGE_PROTECTION = 1 << 8
    UNSAFE = 1 << 9
    OFFLINE = 1 << 10
    COMPRESSED = 1 << 11
    ABORT_ON_ERROR = 1 << 12
    AUTO_CONVERGE = 1 << 13
    RDMA_PIN_ALL = 1 << 14
    POSTCOPY = 1 << 15
    TLS = 1 << 16
    PARALLEL = 1 << 17
    SYNCHRONOUS_WRITES = 1 << 18
    POSTCOPY_RESUME = 1 << 19
    ZEROCOPY = 1 << 20


class Feature(IntEnum):
    MIGRATION_V2 = 3
    MIGRATION_P2P = 4
    MIGRATION_V3 = 6
    CHANGE_PROTECTION = 7
    FD_PASSING = 8
    TYPED_PARAM_STRING = 9
    KEEPALIVE = 10
    XML_MIGRATABLE = 11
    MIGRATION_OFFLINE = 12
    MIGRATION_PARAMS = 13
    EVENT_CALLBACK = 14
    CLOSE_CALLBACK = 15


# What a front says of the destination before it has asked it. Every libvirt since 1.1 (2013) has these; the
# destination's own answers are compared before anything is prepared. Descriptors cannot travel, so FD_PASSING is no.
FEATURES: Final = frozenset(Feature) - {Feature.FD_PASSING, Feature.MIGRATION_V2}

# Flags that do not pass, and what the caller is told.
REFUSED_FLAGS: Final = {
    MigrateFlag.TUNNELLED: "tunnelled migration is not carried: leave --tunnelled away, the lanes are sealed already",
    MigrateFlag.TLS: "--tls is not carried: leave it away, the lanes are sealed already",
    MigrateFlag.RDMA_PIN_ALL: "RDMA cannot be carried",
    MigrateFlag.ZEROCOPY: "--zerocopy needs a TCP connection of QEMU's own: leave it away",
}
# What goes with POSTCOPY_RESUME, by which nothing begins: disks, a definition and a paused guest are of a beginning.
RESUMING_FLAGS: Final = (
    MigrateFlag.LIVE
    | MigrateFlag.PEER2PEER
    | MigrateFlag.PERSIST_DEST
    | MigrateFlag.UNDEFINE_SOURCE
    | MigrateFlag.CHANGE_PROTECTION
    | MigrateFlag.UNSAFE
    | MigrateFlag.ABORT_ON_ERROR
    | MigrateFlag.AUTO_CONVERGE
    | MigrateFlag.POSTCOPY
    | MigrateFlag.POSTCOPY_RESUME
)
KNOWN_FLAGS: Final[int] = (1 << 21) - 1  # a plain number: an inverted IntFlag forgets what it does not know
