"""Keys, certificates and CRLs: there, private, of each other, and valid for long enough that somebody can still act."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509

from certs.errors import CertificateError
from certs.federation import read_bundle
from certs.files import is_folder, read_certificates, read_crl, read_private_key
from gateway.counted import counted
from gateway.doctor.finding import Finding
from gateway.missing import is_missing

# Who makes the file: the remedy where it is not there.
OF_A_HOST: Final = "enrol this host: sealane relay enrol; or bring the files that `sealane certs issue` made for it"
OF_THE_CA: Final = "`sealane certs init` makes it (or init-issuing): restore it from the backup if there was one"


def certificate_findings(path: Path, now: datetime, made_by: str) -> Iterator[Finding]:
    """Wrong if expired, attention if less than a third of its life is left: it should have been renewed by then."""
    try:
        certificates = read_certificates(path)
    except CertificateError as error:
        yield Finding("certificate", "wrong", str(error), made_by)
        return
    for number, certificate in enumerate(certificates):
        further = f" ({certificate.subject.rfc4514_string()})" if number else ""
        yield _validity(f"{path}{further}", certificate, now)


def _validity(path: str, certificate: x509.Certificate, now: datetime) -> Finding:
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if not begin <= now < end:
        when = f"is valid from {begin:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M} UTC, and it is {now:%Y-%m-%d %H:%M}"
        return Finding("certificate", "wrong", f"{path} {when}", "renew it, or correct this machine's clock")
    left = end - now
    if left < (end - begin) / 3:
        return Finding("certificate", "attention", f"{path} ends in {_span(left)}", "renew it")
    return Finding("certificate", "ok", f"{path} is valid for {_span(left)}")


def crl_findings(paths: Sequence[Path], now: datetime) -> Iterator[Finding]:
    """A CRL past its next update makes every peer refuse, and be refused."""
    for path in (file for given in paths for file in _crl_files(given)):
        try:
            crl = read_crl(path)
        except CertificateError as error:
            yield Finding("crl", "wrong", str(error), "fetch the CA's CRL")
            continue
        begin, end = crl.last_update_utc, crl.next_update_utc
        if end is None:
            yield Finding("crl", "wrong", f"{path} does not say until when it is valid", "fetch the CA's CRL")
        elif not begin <= now < end:
            when = f"is valid from {begin:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M} UTC, and it is {now:%Y-%m-%d %H:%M}"
            remedy = "fetch a new one, or correct this machine's clock: no peer passes until then"
            yield Finding("crl", "wrong", f"{path} {when}", remedy)
        elif end - now < (end - begin) / 4:
            yield Finding("crl", "attention", f"{path} ends in {_span(end - now)}", "see why it was not renewed")
        else:
            # Not how old it is: a CA dates it some minutes back, for clocks that are behind.
            yield Finding("crl", "ok", f"{path} is valid for {_span(end - now)}")


def site_findings(trust_domain: str, bundle: Path, crls: Sequence[Path], now: datetime) -> Iterator[Finding]:
    """Another site's roots and CRLs: when they end, no host of it passes here."""
    try:
        roots = read_bundle(bundle, trust_domain)
    except CertificateError as error:
        yield Finding("site", "wrong", f"{trust_domain}: {error}", "sealane sites trust")
        return
    for root in roots:
        found = _validity(str(bundle), root, now)
        yield Finding("site", found.status, f"{trust_domain}: {found.message}", found.remedy and "sealane sites trust")
    yield from crl_findings(crls, now)


def _crl_files(path: Path) -> list[Path]:
    return (sorted(path.glob("*.pem")) or [path]) if is_folder(path) else [path]


def key_finding(path: Path, made_by: str) -> Finding:
    """By the rule that the programs start by: private to its owner, or refused."""
    try:
        read_private_key(path)
    except CertificateError as error:
        remedy = made_by if is_missing(path) else "chmod 600, owned by who runs the service"
        return Finding("private_key", "wrong", str(error), remedy)
    return Finding("private_key", "ok", f"{path} is private")


def folder_finding(path: Path, allowed: int) -> Finding:
    """A folder of state: not open to others than `allowed` (mode bits)."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return Finding("folder", "ok", f"{path} will be made at the first start")
    except OSError as error:
        return Finding("folder", "unknown", f"{path}: {error.strerror}", "run as root, or as who runs the service")
    mode = stat.S_IMODE(found.st_mode)
    if mode & ~allowed:
        return Finding("folder", "wrong", f"{path} has mode {mode:04o}", f"chmod {allowed:o} {path}")
    if os.geteuid() != 0 and found.st_uid != os.geteuid():
        return Finding("folder", "unknown", f"{path} belongs to user {found.st_uid}", "run as root, or as that user")
    return Finding("folder", "ok", f"{path} has mode {mode:04o}")


def _span(length: timedelta) -> str:
    if length >= timedelta(days=2):
        return f"{length.days} days"
    hours = length / timedelta(hours=1)
    return f"{hours:.0f} hours" if hours >= 2 else counted(round(length / timedelta(minutes=1)), "minute")
