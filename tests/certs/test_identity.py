"""SPIFFE ids: one spelling each."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from certs.errors import IdentityError
from certs.identity import MAX_LENGTH, SpiffeId, require_trust_domain, spiffe_id_of
from tests.certs.chains import make_ca, make_host, uri_of

labels = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?", fullmatch=True)
trust_domains = st.lists(labels, min_size=1, max_size=4).map(".".join).filter(lambda d: not d.split(".")[-1].isdigit())


@given(trust_domains, labels)
def test_parse_gives_back_what_was_written(trust_domain: str, name: str) -> None:
    identity = SpiffeId(trust_domain, name)
    assert SpiffeId.parse(str(identity)) == identity


@given(
    st.one_of(
        st.text(max_size=80), st.text("spiffe://hot.-x%:@?#1\n", max_size=40).map("spiffe://td.example/host/".__add__)
    )
)
@example("spiffe://td.example/host/host-a\n")
@example("spiffe://td.example/host/h\u00f6st")
@example("spiffe://td.example/host/\uff41")
def test_any_text_is_canonical_or_refused(text: str) -> None:
    try:
        identity = SpiffeId.parse(text)
    except IdentityError:
        return
    assert str(identity) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "spiffe://td.example",
        "spiffe://td.example/",
        "spiffe://td.example/host",
        "spiffe://td.example/host/",
        "spiffe://td.example/host/a/",
        "spiffe://td.example/host/a/b",
        "spiffe://td.example//host/a",
        "spiffe://td.example/host/a?q",
        "spiffe://td.example/host/a#f",
        "spiffe://td.example/host/%61",
        "spiffe://td.example/host/-a",
        "spiffe://td.example/host/a-",
        "spiffe://td.example/host/a_b",
        "spiffe://td.example/host/a.b",
        "spiffe://td.example/host/.",
        "spiffe://td.example/host/A",
        "spiffe://td.example/host/" + "a" * 64,
        "spiffe://TD.example/host/a",
        "SPIFFE://td.example/host/a",
        "spiffe://td.example:443/host/a",
        "spiffe://u@td.example/host/a",
        "spiffe://u:p@td.example/host/a",
        "spiffe://td..example/host/a",
        "spiffe://.td.example/host/a",
        "spiffe://td.example./host/a",
        "spiffe://-td.example/host/a",
        "spiffe://10.0.0.1/host/a",
        "spiffe://[::1]/host/a",
        "spiffe:///host/a",
        " spiffe://td.example/host/a",
        "spiffe://td.example/host/a ",
        "spiffe://td.example/host/a\n",
        "spiffe://td.example/host/a\0",
        "spiffe://td.example/workload/a",
        "https://td.example/host/a",
    ],
)
def test_other_spellings_are_refused(text: str) -> None:
    with pytest.raises(IdentityError):
        SpiffeId.parse(text)


def test_an_id_may_be_as_long_as_the_limit_and_no_longer() -> None:
    room = MAX_LENGTH - len("spiffe://") - len("/host/a")
    label = "d" * 63
    longest = f"{label}.{label}.{label}.".ljust(room, "x")
    assert len(str(SpiffeId(longest, "a"))) == MAX_LENGTH
    with pytest.raises(IdentityError):
        SpiffeId(longest + "x", "a")
    with pytest.raises(IdentityError):
        SpiffeId.parse(f"spiffe://{longest}x/host/a")


@pytest.mark.parametrize(
    "parts", [("td.example", "../x"), ("td.example", ""), ("td.example", "a\n"), ("", "a"), ("TD", "a")]
)
def test_an_id_that_is_not_canonical_cannot_be_made(parts: tuple[str, str]) -> None:
    with pytest.raises(IdentityError):
        SpiffeId(*parts)


def test_an_error_shows_the_text_escaped_and_cut() -> None:
    with pytest.raises(IdentityError) as refused:
        require_trust_domain("\x1b[2J" + "x" * 10_000)
    assert "\x1b" not in str(refused.value)
    assert len(str(refused.value)) < 300


def test_the_only_uri_of_a_certificate_is_its_id() -> None:
    host = make_host(make_ca(), "host-a", dns_names=["something.else"], common_name="unrelated")
    assert spiffe_id_of(host.certificate) == SpiffeId("td.example", "host-a")


@pytest.mark.parametrize(
    ("uris", "says"),
    [
        ([], "0 URI"),
        ([uri_of("a"), uri_of("b")], "2 URI"),
        ([uri_of("a")] * 2, "2 URI"),
        (["urn:x", uri_of("a")], "2 URI"),
    ],
)
def test_none_or_two_uris_are_no_id(uris: list[str], says: str) -> None:
    host = make_host(make_ca(), uris=uris, dns_names=["host-a"], common_name=uri_of("host-a"))
    with pytest.raises(IdentityError, match=says):
        spiffe_id_of(host.certificate)


def test_a_common_name_is_no_id() -> None:
    with pytest.raises(IdentityError, match="no subject alternative name"):
        spiffe_id_of(make_host(make_ca(), uris=[], common_name=uri_of("host-a")).certificate)
