"""Any bytes at all, after a good handshake, with a live bystander."""

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.harness import GONE, raw_frame, serving
from tests.server.bystander import bystander
from tests.server.test_closing import left_behind

REQUESTS = [
    b'{"jsonrpc":"2.0","id":1,"method":"lease.acquire","params":{"name":"a","wait_ms":null}}',
    b'{"jsonrpc":"2.0","id":2,"method":"lease.acquire","params":{"name":"b","ttl_ms":100}}',
    b'{"jsonrpc":"2.0","id":3,"method":"lease.watch","params":{"name":"a"}}',
    b'{"jsonrpc":"2.0","id":4,"method":"rpc.cancel","params":{"id":1}}',
    b'{"jsonrpc":"2.0","id":5,"method":"session.open","params":{"batch":true}}',
    b'{"jsonrpc":"2.0","id":6,"method":"lease.break","params":{"name":"a"}}',
    b"["
    + b",".join([b'{"jsonrpc":"2.0","method":"lease.watch","params":{"name":"c"}}'] * 9)
    + b"]",
]
payloads = st.sampled_from(REQUESTS) | st.binary(max_size=130)
good = st.builds(raw_frame, st.just(1), st.sampled_from(REQUESTS))
control = st.builds(raw_frame, st.sampled_from([9, 10]), st.binary(max_size=5))
closing = st.just(raw_frame(8, b"\x03\xe8")) | st.builds(
    raw_frame, st.just(8), st.binary(max_size=6)
)
odd = st.builds(
    raw_frame,
    st.integers(0, 15),
    payloads,
    fin=st.booleans(),
    masked=st.integers(0, 9).map(bool),
    rsv=st.sampled_from([0, 0, 0, 0, 4]),
    declared_length=st.none() | st.integers(0, 300) | st.just(2**40),
)
streams = st.lists(good | good | control | closing | odd, max_size=12)


@settings(max_examples=60)
@given(chunks=streams, in_one_write=st.booleans())
async def test_whatever_a_peer_sends_it_harms_nobody_and_leaves_nothing(
    chunks: list[bytes], in_one_write: bool
) -> None:
    async with serving() as served:
        async with bystander(served):
            peer = await served.connect()
            try:
                for chunk in [b"".join(chunks)] if in_one_write else chunks:
                    await peer.send_raw(chunk)
            except GONE:
                pass
            await peer.drop()
            await served.idle(1)
        for session in list(served.keeper._detached):
            served.keeper._end_grace(session)
        await served.idle()
        assert not {"connections", "sessions", "watchers", "watched", "tenures"} & set(
            left_behind(served)
        )
