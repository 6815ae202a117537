"""What relays are told of CAs that come and go, read from the folders in which they lie."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from certs.authority import INTRODUCTIONS
from certs.files import read_certificates
from certs.introduction import crl_id, root_id
from gateway.rollover.places import Places, Stage
from gateway.rollover.signing_keys import ToldKeys


@dataclass(frozen=True, slots=True)
class Rolling:
    """`introductions`: PEM, of roots by their predecessors. `key_introductions`: JSON, of keys of permits and logs.

    `leaving`, `retired`: names, as relays say them.
    """

    introductions: tuple[str, ...] = ()
    leaving: tuple[str, ...] = ()
    retired: tuple[str, ...] = ()
    key_introductions: tuple[str, ...] = ()


NOTHING_ROLLS = Rolling()


def rolling(authority: Path) -> Rolling:
    """`authority`: the folder of the CA in force. Raises `CredentialError`."""
    places = Places(authority)
    leaving = (authority_name(places.former),) if places.stage is Stage.SWITCHED else ()
    return Rolling(_introductions(places), leaving, tuple(_retired(places)))


def with_keys(told: Rolling, keys: ToldKeys) -> Rolling:
    texts = tuple(msgspec.json.encode(each).decode() for each in keys.introductions)
    return replace(told, retired=(*told.retired, *keys.retired), key_introductions=texts)


def authority_name(folder: Path) -> str:
    """Of the CA in a folder, by which its CRL is known."""
    return _crl_name(read_certificates(folder / "ca.pem")[0])


def names_needed(folder: Path) -> frozenset[str]:
    """What a relay must hold to believe a host that this CA certifies."""
    root = root_of(folder)
    return frozenset({root_id(root), _crl_name(root), authority_name(folder)})


def root_of(folder: Path) -> x509.Certificate:
    """The root above the CA in `folder`, or that CA itself."""
    name = "root.pem" if (folder / "root.pem").exists() else "ca.pem"
    return read_certificates(folder / name)[0]


def _introductions(places: Places) -> tuple[str, ...]:
    """As the newest CA has them; it brings those before it along."""
    newest = places.next if places.stage is Stage.BEGUN else places.current
    if not (newest / INTRODUCTIONS).exists():
        return ()
    return tuple(each.public_bytes(Encoding.PEM).decode() for each in read_certificates(newest / INTRODUCTIONS))


def _retired(places: Places) -> Iterator[str]:
    kept = frozenset().union(*(names_needed(folder) for folder in (places.current, *places.beside())))
    for folder in places.retired():
        yield from sorted(names_needed(folder) - kept)


def _crl_name(certificate: x509.Certificate) -> str:
    return crl_id(certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest)
