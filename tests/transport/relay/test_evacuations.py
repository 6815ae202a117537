"""Evacuation permits on a relay's host: kept for its owner alone, used once, for the one destination that was begun."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from policy.permit import PermitKey
from tests.transport.site import Site
from transport.errors import LocalBroken, OfferRefused, RefusalCode
from transport.relay.evacuations import Evacuation, EvacuationOrder, Evacuations, shown
from transport.relay.host import RelayHost, open_host
from transport.relay.pins import Pins

VM = "11111111-2222-4333-8444-555555555555"
OTHER = "99999999-2222-4333-8444-555555555555"
ID = "e" * 32


@pytest.fixture
def site(short_path: Path) -> Site:
    return Site.lay_out(short_path, ("a", "b", "c"))


@pytest.fixture
def host(site: Site) -> RelayHost:
    return open_host(site.relay_config("a"))


def order(site: Site, vm: str, to: str, name: str = "web", **changes: object) -> EvacuationOrder:
    there = site.spiffe(to)
    now = int(time.time())
    times = {"exp": now + 7200, "session_until": now + 9000, "recover_until": now + 9000}
    token = site.permit(**{"vm": vm, "destination": there, "aud": there, **times, **changes})
    return EvacuationOrder(token, vm, name, there, "127.0.0.1:1", 300, 3600)


def prepared(site: Site, *orders: EvacuationOrder, evacuation_id: str = ID, seconds: int = 7200) -> Evacuation:
    both = orders or (order(site, VM, "b"), order(site, VM, "c"), order(site, OTHER, "c", "db"))
    return Evacuation(evacuation_id, int(time.time()) + seconds, both)


def file_of(host: RelayHost) -> Path:
    return host.evacuations.folder / f"{ID}.json"


def test_what_is_kept_only_its_owner_reads(site: Site, host: RelayHost) -> None:
    assert host.evacuations.keep(prepared(site)) == 3
    assert file_of(host).stat().st_mode & 0o777 == 0o600
    assert host.evacuations.folder.stat().st_mode & 0o777 == 0o700
    file_of(host).chmod(0o644)
    assert host.evacuations.all() == [], "what others could read is not used"


def test_the_first_destination_is_tried_first_and_another_on_request(site: Site, host: RelayHost) -> None:
    host.evacuations.keep(prepared(site))
    assert host.evacuations.take("web", None)[1].destination == site.spiffe("b")
    assert host.evacuations.take(OTHER, "c")[1].destination == site.spiffe("c")
    with pytest.raises(LocalBroken, match="was used: it was sent to b"):
        host.evacuations.take(VM, "c")


def test_what_was_begun_is_noted_durably_and_given_back_only_if_the_guest_stayed(site: Site, host: RelayHost) -> None:
    host.evacuations.keep(prepared(site))
    host.evacuations.take("web", None)
    again = open_host(site.relay_config("a")).evacuations
    with pytest.raises(LocalBroken, match="was used"):
        again.take("web", None)
    again.stayed(VM, site.spiffe("c"), is_spent=True)
    with pytest.raises(LocalBroken, match="was used"):
        again.take("web", None)
    again.stayed(VM, site.spiffe("b"), is_spent=False)
    assert again.take("web", "c")[1].destination == site.spiffe("c")


def test_a_permit_that_was_used_in_vain_is_not_used_again_and_the_next_destination_comes(
    site: Site, host: RelayHost
) -> None:
    host.evacuations.keep(prepared(site))
    host.evacuations.take("web", None)
    host.evacuations.give_back(ID, VM, is_spent=True)
    again = open_host(site.relay_config("a")).evacuations
    assert [each["spent"] for each in shown(again.all(), 0)[0]["vms"]] == [(site.spiffe("b"),), ()]  # type: ignore[attr-defined]
    with pytest.raises(LocalBroken, match="or none for that destination"):
        again.take("web", "b")
    assert again.take("web", None)[1].destination == site.spiffe("c")
    again.give_back(ID, VM, is_spent=True)
    again.give_back(ID, VM, is_spent=True)
    with pytest.raises(LocalBroken, match="no evacuation permit of web is left"):
        again.take("web", None)


def test_nothing_is_kept_of_what_is_not_good_here(site: Site, host: RelayHost) -> None:
    good, past = order(site, VM, "b"), int(time.time()) - 60
    for bad, code in (
        (order(site, VM, "b", source=site.spiffe("c")), RefusalCode.PERMIT_PARTIES),  # for another host
        (order(site, VM, "b", exp=past, iat=past - 30, nbf=past - 30), RefusalCode.PERMIT_TIMES),
        (msgspec.structs.replace(good, permit=good.permit[:-8] + "AAAAAAAA"), RefusalCode.PERMIT_SIGNATURE),
        (order(site, VM, "b", minimum_crl_number=1000), RefusalCode.PERMIT_REQUIREMENTS),
    ):
        with pytest.raises(OfferRefused) as refused:
            host.evacuations.keep(prepared(site, good, bad))
        assert refused.value.code is code
        assert host.evacuations.all() == []
    for bad in (msgspec.structs.replace(good, vm=OTHER), msgspec.structs.replace(good, destination=site.spiffe("c"))):
        with pytest.raises(LocalBroken, match="than its order says"):
            host.evacuations.keep(prepared(site, good, bad))
        assert host.evacuations.all() == []


def test_what_has_ended_is_not_used_and_forgotten(site: Site, host: RelayHost) -> None:
    host.evacuations.keep(prepared(site))
    later = Evacuations(
        host.evacuations.folder, host.permits, lambda: host.spiffe_id, lambda: int(time.time()) + 10_000
    )
    with pytest.raises(LocalBroken, match="no evacuation permit of web is left"):
        later.take("web", None)
    later.forget_ended()
    assert not file_of(host).exists()


def test_a_permit_whose_key_was_retired_is_refused_in_words_and_not_noted_as_used(site: Site, host: RelayHost) -> None:
    host.evacuations.keep(prepared(site))
    other = PermitKey.from_public_key(ec.generate_private_key(ec.SECP256R1()).public_key())
    host.permits.pin(Pins((other,), host.permits.log_verifiers))
    with pytest.raises(OfferRefused, match="permit_signature"):
        host.evacuations.take("web", None)
    assert [evacuation.begun for evacuation in host.evacuations.all()] == [{}]


def test_withdrawn_is_gone(site: Site, host: RelayHost) -> None:
    host.evacuations.keep(prepared(site))
    assert host.evacuations.withdraw(ID)
    assert not host.evacuations.withdraw(ID)
    with pytest.raises(LocalBroken, match="no evacuation was prepared"):
        host.evacuations.take("web", None)
    for name in ("../../etc/passwd", "", "x"):
        with pytest.raises(LocalBroken):
            host.evacuations.withdraw(name)


def test_two_vms_of_one_name_must_be_told_apart(site: Site, host: RelayHost) -> None:
    host.evacuations.keep(prepared(site, order(site, VM, "b"), order(site, OTHER, "c")))
    with pytest.raises(LocalBroken, match="name it by its UUID"):
        host.evacuations.take("web", None)
    assert host.evacuations.take(OTHER, None)[1].vm == OTHER


def test_a_damaged_file_hides_no_other(site: Site, host: RelayHost) -> None:
    host.evacuations.keep(prepared(site))
    broken = host.evacuations.folder / f"{'d' * 32}.json"
    broken.write_text('{"evacuation_id": 7')
    broken.chmod(0o600)
    assert len(host.evacuations.all()) == 1


def test_what_is_told_again_keeps_what_was_noted_of_its_use(site: Site, host: RelayHost) -> None:
    """The gateway tells again until it has heard that it is held; nor has it a word in what was used here."""
    told = msgspec.structs.replace(prepared(site), begun={OTHER: site.spiffe("c")}, spent={OTHER: (site.spiffe("c"),)})
    host.evacuations.keep(told)
    host.evacuations.take("web", None)
    host.evacuations.keep(told)
    (kept,) = host.evacuations.all()
    assert (kept.begun, kept.spent) == ({VM: site.spiffe("b")}, {})


def test_what_is_noted_at_one_moment_is_noted_of_each(site: Site, host: RelayHost) -> None:
    """An operator empties a host by many commands at once: each wrote what it had read, and undid another's note."""
    names = [f"vm{number}" for number in range(8)]
    vms = [VM.replace("1", str(number), 1) for number in range(8)]
    host.evacuations.keep(prepared(site, *(order(site, vm, "b", name) for vm, name in zip(vms, names, strict=True))))
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda name: host.evacuations.take(name, None), names))
    (kept,) = host.evacuations.all()
    assert sorted(kept.begun) == sorted(vms)
