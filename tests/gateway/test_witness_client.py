"""What a witness may answer, however odd: a cosignature that verifies, or a failure of that witness alone."""

from __future__ import annotations

import gzip
from collections.abc import Sequence

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from audit.checkpoint import Checkpoint, read_note, sign_checkpoint
from audit.cosignature import Cosigner
from gateway.witness_client import MAX_ANSWER_BYTES, WitnessClient, WitnessDisagrees, WitnessFailed
from tests.audit.samples import ORIGIN, SIGNER

NOW = 1_764_100_000
TEXT = sign_checkpoint(Checkpoint(ORIGIN, 3, b"r" * 32), SIGNER)
COSIGNER = Cosigner("witness.example/w1", Ed25519PrivateKey.generate())
PLAIN = "text/plain; charset=utf-8"


def good() -> bytes:
    return COSIGNER.cosign(read_note(TEXT), NOW).encode()


async def no_path(_old: int, _new: int) -> Sequence[bytes]:
    return ()


class Answers:
    """One after the other; the last one again and again."""

    def __init__(self, *answers: tuple[int, bytes, dict[str, str]]) -> None:
        self._answers = list(answers)
        self.asked: list[bytes] = []
        self.client = WitnessClient(
            COSIGNER.key.name,
            "https://w",
            (COSIGNER.key,),
            httpx.AsyncClient(transport=httpx.MockTransport(self._next)),
        )

    def _next(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request.content)
        status, body, headers = self._answers[0] if len(self._answers) == 1 else self._answers.pop(0)
        return httpx.Response(status, headers={"content-type": PLAIN, **headers}, stream=httpx.ByteStream(body))


async def test_a_cosignature_is_read() -> None:
    (found,) = await Answers((200, good(), {})).client.cosign(TEXT, no_path)
    assert found.time == NOW


@pytest.mark.parametrize("status", [200, 409, 422, 500])
@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({"content-type": "text/plain; charset=hex"}, b"zz"),
        ({"content-type": "text/plain; charset=rot13"}, b"zz"),
        ({"content-type": "text/plain; charset=idna"}, b"\xff.."),
        ({"content-type": "text/plain; charset=punycode"}, b"\xff\xff"),
        ({"content-encoding": "gzip"}, b"not packed"),
        ({"content-encoding": "gzip"}, gzip.compress(b"packed", mtime=0)),
        ({}, b"\xff\xfe\x00"),
        ({}, b"x" * 100_000),
    ],
)
async def test_an_odd_answer_is_that_witness_failing(status: int, headers: dict[str, str], body: bytes) -> None:
    answers = Answers((status, body, headers))
    with pytest.raises(WitnessFailed):
        await answers.client.cosign(TEXT, no_path)
    if status == 200 and len(body) <= MAX_ANSWER_BYTES:  # whoever asked for it reads it as a checkpoint
        assert await answers.client.latest(ORIGIN) == body.decode("utf-8", "replace")
    else:
        with pytest.raises(WitnessFailed):
            await answers.client.latest(ORIGIN)


async def test_a_size_that_was_told_in_error_is_not_held_against_the_witness_for_ever() -> None:
    answers = Answers((409, b"999\n", {}), (200, good(), {}))
    with pytest.raises(WitnessDisagrees, match="at size 999"):
        await answers.client.cosign(TEXT, no_path)
    assert len(await answers.client.cosign(TEXT, no_path)) == 1
