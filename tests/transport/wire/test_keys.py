"""The key schedule: fixed vectors, and that every input that must matter does."""

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from hypothesis import given
from hypothesis import strategies as st

from transport.errors import Misuse
from transport.wire.keys import ConnectionKeys, Direction, epoch_key, expand, exporter_context, next_lane_secret

SECRET = bytes(range(48))
LEAF_S, LEAF_D, SESSION = b"S" * 32, b"D" * 32, b"i" * 16


@given(st.binary(min_size=48, max_size=48), st.binary(max_size=64), st.integers(1, 300))
def test_expand_is_hkdf_expand_of_rfc_5869(secret: bytes, info: bytes, length: int) -> None:
    assert expand(secret, info, length) == HKDFExpand(hashes.SHA384(), length, info).derive(secret)


def test_keys_of_a_known_secret_are_the_documented_ones() -> None:
    """docs/wire-protocol.md, test vectors."""
    keys = ConnectionKeys(SECRET)
    lane = keys.lane_secret(1, Direction.SOURCE_TO_DESTINATION)
    assert keys.connection_id.hex() == VECTOR["connection_id"]
    assert keys.preface_key(1).hex() == VECTOR["preface_key"]
    assert lane.hex() == VECTOR["lane_secret"]
    assert epoch_key(lane).key.hex() == VECTOR["key"]
    assert f"{epoch_key(lane).iv:024x}" == VECTOR["iv"]
    assert next_lane_secret(lane).hex() == VECTOR["next"]


@pytest.mark.parametrize(
    "other",
    [
        (["q"], LEAF_S, LEAF_D, SESSION, 0),
        (["p", "p"], LEAF_S, LEAF_D, SESSION, 0),
        (["p"], LEAF_D, LEAF_D, SESSION, 0),
        (["p"], LEAF_S, LEAF_S, SESSION, 0),
        (["p"], LEAF_D, LEAF_S, SESSION, 0),
        (["p"], LEAF_S, LEAF_D, b"j" * 16, 0),
        (["p"], LEAF_S, LEAF_D, SESSION, 1),
    ],
)
def test_every_input_changes_the_exporter_context(other: tuple[list[str], bytes, bytes, bytes, int]) -> None:
    assert exporter_context(*other) != exporter_context(["p"], LEAF_S, LEAF_D, SESSION, 0)


def test_two_permits_cannot_be_cut_in_another_place() -> None:
    assert exporter_context(["ab", "c"], LEAF_S, LEAF_D, SESSION, 0) != exporter_context(
        ["a", "bc"], LEAF_S, LEAF_D, SESSION, 0
    )


def test_every_channel_and_direction_has_its_own_secret() -> None:
    keys = ConnectionKeys(SECRET)
    secrets = {keys.lane_secret(channel, way) for channel in range(300) for way in Direction}
    secrets |= {keys.preface_key(channel) for channel in range(300)}
    assert len(secrets) == 900


def test_no_secret_shows_in_a_repr() -> None:
    keys = ConnectionKeys(SECRET)
    assert SECRET.hex() not in repr(keys)
    assert repr(epoch_key(SECRET)) == "EpochKey(…)"


def test_a_secret_of_another_size_is_our_mistake() -> None:
    with pytest.raises(Misuse):
        ConnectionKeys(b"short")


VECTOR = {
    "connection_id": "e828a08d15fc485ecec0ef8e3e8094e5",
    "preface_key": "972ebf894e68024e3bfd823e24d0a2d345140124f207d7b588e4e1faccdc6fbe2b4b87d189facd0f33d26cd480543d31",
    "lane_secret": "f98bcb4301d1f7a9bccc877a7284599dbc8d726f0502390c3c2492fbaec58b72a2d40b135ed46f61eb48be8fe2af74fc",
    "key": "34497cdeaab1eb9b5a3c167d3ac74821e2655197520848b68dd32378666b629d",
    "iv": "1869e4d3ba30a6728e8d9b0f",
    "next": "46e31109ccb8a96469a803c62d9ebf91452249d0b8e094441859122b5f8f11f876b38d1dc42f35637f921a3df52a40cc",
}
