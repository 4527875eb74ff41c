"""The corpus, and what a little chance makes of it."""

from random import Random

import pytest

from tests.fuzz.__main__ import CORPUS
from tests.fuzz.targets import TARGETS

VARIANTS = 8
SLOW = {"handshake", "replies"}
"""Each of these is a whole connection."""
ODD = [b"\0", b"\xff", b"\r\n", b"[", b'"', b"{}", b"9" * 20, b"\x81\x80\0\0\0\0", b"\x7f\xff"]


def cases() -> list[tuple[str, str]]:
    return [
        (target, path.name) for target in TARGETS for path in sorted((CORPUS / target).iterdir())
    ]


def variants(data: bytes, chance: Random) -> bytes:
    """The same with a few places changed."""
    changed = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        at = chance.randint(0, len(changed))
        match chance.randrange(4):
            case 0:
                changed[at : at + 1] = bytes([chance.randrange(256)])
            case 1:
                changed[at:at] = chance.choice(ODD)
            case 2:
                del changed[at : at + chance.randint(1, 8)]
            case _:
                changed[at:at] = changed[at : at + chance.randint(1, 64)]
    return bytes(changed)


def test_each_target_has_a_corpus() -> None:
    assert {target for target, _ in cases()} == set(TARGETS)


@pytest.mark.parametrize(("target", "name"), cases())
def test_whatever_bytes_come(target: str, name: str) -> None:
    data, chance = (CORPUS / target / name).read_bytes(), Random(name)
    TARGETS[target](data)
    for _ in range(VARIANTS // 4 if target in SLOW else VARIANTS):
        TARGETS[target](variants(data, chance))
