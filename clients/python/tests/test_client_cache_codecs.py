"""How values travel, and how keys are made of arguments."""

import base64
import json
from datetime import date
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from leasekeeper_client import (
    Fresh,
    JsonCodec,
    MsgpackCodec,
    NotFound,
    UnknownCodec,
    ZstdCodec,
    connect,
    current_load,
)
from leasekeeper_client._keys import KeyMaker, quote
from leasekeeper_client._plan import NAME
from leasekeeper_client.codecs import Codec, from_wire, to_wire

from client_fake_cache import cache_server
from client_helpers import on_both

JSON = JsonCodec()
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.text(st.characters(exclude_categories=["Cs"])) | st.just("$lk"), inner, max_size=4
        )
    ),
    max_leaves=12,
)


def there_and_back(codec: Codec, value: object) -> object:
    return from_wire(codec, json.loads(to_wire(codec, value)))


@given(values)
def test_every_codec_gives_back_what_json_can_say(value: object) -> None:
    for codec in (JSON, MsgpackCodec(), ZstdCodec(threshold=0), ZstdCodec(MsgpackCodec())):
        assert there_and_back(codec, value) == value


def test_json_travels_as_itself() -> None:
    assert to_wire(JSON, {"é": [1, None]}) == '{"é":[1,null]}'
    assert to_wire(ZstdCodec(threshold=100), [1, 2]) == "[1,2]", "a short one is not compressed"


def test_a_value_that_looks_like_another_codecs_is_told_apart() -> None:
    value = {"$lk": "msgpack", "b": "AQ=="}
    assert there_and_back(JSON, value) == value
    assert there_and_back(MsgpackCodec(), value) == value


def test_bytes_travel_as_message_pack() -> None:
    wire = json.loads(to_wire(MsgpackCodec(), {"raw": b"\x00\xff"}))
    assert wire["$lk"] == "msgpack"
    assert base64.b64decode(wire["b"]) == b"\x81\xa3raw\xc4\x02\x00\xff"
    assert from_wire(MsgpackCodec(), wire) == {"raw": b"\x00\xff"}


def test_long_values_are_compressed_and_read_without_compressing() -> None:
    value = ["the same again"] * 1000
    wire = to_wire(ZstdCodec(), value)
    assert wire.startswith('{"$lk":"zstd+json",')
    assert len(wire) < 200
    assert there_and_back(ZstdCodec(MsgpackCodec()), value) == value
    assert from_wire(ZstdCodec(MsgpackCodec()), json.loads(to_wire(MsgpackCodec(), 1))) == 1
    assert from_wire(ZstdCodec(MsgpackCodec()), [1]) == [1]


def test_what_says_that_it_is_huge_is_not_unpacked() -> None:
    wire = json.loads(to_wire(ZstdCodec(), "x" * 5000))
    with pytest.raises(ValueError, match="at most 4000"):
        from_wire(ZstdCodec(bytes_max=4000), wire)


@pytest.mark.parametrize("value", [{"$lk": "pickle", "b": "gASVAA=="}, {"$lk": None}, {"$lk": []}])
def test_a_codec_that_is_not_in_use_is_an_error_of_its_own(value: object) -> None:
    for codec in (JSON, MsgpackCodec(), ZstdCodec()):
        with pytest.raises(UnknownCodec):
            from_wire(codec, value)
    with pytest.raises(UnknownCodec) as caught:
        from_wire(JSON, json.loads(to_wire(MsgpackCodec(), 1)))
    assert caught.value.tag == "msgpack"


@pytest.mark.parametrize(
    ("codec", "tag", "data"),
    [
        (MsgpackCodec(), "msgpack", "wQ=="),
        (MsgpackCodec(), "msgpack", "?"),
        (ZstdCodec(), "zstd+json", "AAAA"),
    ],
)
def test_a_damaged_value_is_a_value_error(codec: Codec, tag: str, data: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        from_wire(codec, {"$lk": tag, "b": data})


def nested(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels - 1):
        value = [value]
    return value


def test_json_refuses_what_readers_would_not_get_back() -> None:
    assert there_and_back(JSON, nested(250)) == nested(250)
    for value in (nested(251), nested(5000), 2**64, [{"n": -(2**63) - 1}], float("nan")):
        with pytest.raises(ValueError, match=r"."):
            to_wire(JSON, value)
    with pytest.raises(TypeError):
        to_wire(JSON, {1, 2})
    assert there_and_back(JSON, "9" * 30) == "9" * 30
    assert there_and_back(JSON, [[]] * 1000) == [[]] * 1000


@on_both
async def test_a_codec_of_ones_own() -> None:
    class Reversed:
        tag = "reversed"

        def dumps(self, value: object) -> bytes:
            return str(value)[::-1].encode()

        def loads(self, data: bytes) -> object:
            return data.decode()[::-1]

    class Nameless(Reversed):
        tag = "No Tag"

    async with cache_server() as server, connect(server.url) as keeper:
        mine = keeper.cache.using(Reversed())
        await mine.set("k", "abc", ttl=1)
        assert server.entries["k"].value == {"$lk": "reversed", "b": "Y2Jh"}
        assert await mine.get("k") == "abc"
        with pytest.raises(UnknownCodec):
            await keeper.cache.get("k")
        with pytest.raises(UnknownCodec):
            await keeper.cache.get_or_fill("k", nothing, ttl=1)
        with pytest.raises(ValueError, match="No Tag"):
            keeper.cache.using(Nameless())


async def nothing() -> int:
    raise AssertionError("it was called")


# --- Keys -------------------------------------------------------------------------------------


class Colour(Enum):
    RED = "r:d"


def make(template: str, function: Any, *args: Any, **kwargs: Any) -> str:
    return KeyMaker(function, template).make(args, kwargs)[0]


def three(a: object, b: object = 2, *, c: object = 3) -> None:
    """A shape of arguments."""


def test_a_key_is_filled_from_arguments_however_they_are_passed() -> None:
    template = "x:{a}/{b}@{c}"
    keys = {
        make(template, three, 1),
        make(template, three, a=1),
        make(template, three, 1, 2, c=3),
        make(template, three, c=3, b=2, a=1),
    }
    assert keys == {"x:1/2@3"}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("plain-1.0_", "plain-1.0_"),
        ("a:b/c@d+e", "a+3Ab+2Fc+40d+2Be"),
        ("é %", "+C3+A9+20+25"),
        ("", ""),
        (7, "7"),
        (True, "True"),
        (None, "None"),
        (Decimal("1.50"), "1.50"),
        (date(2026, 1, 2), "2026-01-02"),
        (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (Colour.RED, "r+3Ad"),
    ],
)
def test_what_is_filled_in_is_quoted(value: object, text: str) -> None:
    assert make("x:{a}", three, value) == f"x:{text}"


@given(st.text(), st.text(), st.text(), st.text())
def test_no_two_calls_have_one_key(a: str, b: str, c: str, d: str) -> None:
    maker = KeyMaker(three, "{a}:{b}")
    try:
        first, second = maker.make((a, b), {})[0], maker.make((c, d), {})[0]
    except ValueError:
        return  # longer than a key may be
    assert (first == second) == ((a, b) == (c, d))


@given(st.text(min_size=1, max_size=20))
def test_what_is_quoted_can_stand_in_a_key(text: str) -> None:
    assert NAME.fullmatch(quote(text))


def test_parts_and_formats_can_be_filled_in() -> None:
    day = date(2026, 1, 2)
    assert make("d:{a.year}:{b[0]}:{c:%d/%m}", three, day, ["x"], c=day) == "d:2026:x:02+2F01"


@pytest.mark.parametrize("template", ["{a}{b}", "{a}-{b}", "x:{d}", "{}", "{0}", "{a:{b}}"])
def test_a_template_that_could_mislead_is_refused(template: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        KeyMaker(three, template)


def test_what_has_no_text_of_its_own_is_refused() -> None:
    for value in (object(), [1], {"a": 1}, b"x"):
        with pytest.raises(TypeError, match="cannot be part of a key"):
            make("x:{a}", three, value)
    with pytest.raises(ValueError, match="255"):
        make("x:{a}", three, "y" * 254)


@on_both
async def test_a_cached_function_is_called_once_for_each_key() -> None:
    async with cache_server() as server, connect(server.url) as keeper:
        calls: list[tuple[int, str]] = []

        @keeper.cache.cached("user:{user_id}/{part}", ttl=60, tags=["user:{user_id}", "users"])
        async def user(user_id: int, part: str = "all") -> dict[str, object]:
            """Load a user."""
            calls.append((user_id, part))
            return {"id": user_id, "key": current_load().key}

        assert await user(7) == {"id": 7, "key": "user:7/all"}
        assert await user(user_id=7, part="all") == await user(7, "all")
        assert user.key(7) == "user:7/all"
        assert user.__doc__ == "Load a user."
        await user.invalidate(7)
        assert "user:7/all" not in server.entries
        await user(7)
        assert calls == [(7, "all")] * 2
        assert server.asked("cache.fill")[0]["tags"] == ["user:7", "users"]


@on_both
async def test_a_cached_function_may_say_more_and_options_are_checked_at_once() -> None:
    async with cache_server() as server, connect(server.url) as keeper:

        @keeper.cache.cached("n:{n}", ttl=60)
        async def fresh(n: int) -> Fresh[int] | NotFound:
            return Fresh(n, ttl=1, tags=("t",))

        assert await fresh(1) + 1 == 2
        assert server.asked("cache.fill")[0]["ttl_ms"] == 1000
        with pytest.raises(ValueError, match="ttl"):
            keeper.cache.cached("n:{n}", ttl=0)
