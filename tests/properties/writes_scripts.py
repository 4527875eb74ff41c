"""What the scripts of write-behind keep of a queue, looked at in Redis."""

import json
from typing import Final

from leasekeeper.resp.replies import Reply
from leasekeeper.store.redis.entries import integer, listed, word
from tests.properties.caches_scripts import LOOK_INTO, Wire
from tests.properties.writes_core import Facts

PLAIN: Final = LOOK_INTO.partition("local found")[0]
LOOK_INTO_WRITES: Final = (
    PLAIN
    + """
local found = {}
local all = redis.call('HGETALL', KEYS[1])
for i = 1, #all, 2 do
  found[#found + 1] = {all[i], cjson.encode(plain(cmsgpack.unpack(all[i + 1])))}
end
return found
"""
)
"""Each key, and its write as JSON with numbers as text."""


def kept_queue(wire: Wire, queue: str) -> Facts:
    """What there is of a queue, as `CoreWrites.kept` has it. It must hold together."""
    keys = wire.layout.queue_keys(0, queue)
    log, writes, due, dead, graves, size, news = keys
    replies = wire.on_partition(
        0,
        ["XRANGE", log, "-", "+"],
        ["EVAL", LOOK_INTO_WRITES, 1, writes],
        ["ZRANGE", due, 0, -1, "WITHSCORES"],
        ["XRANGE", dead, "-", "+"],
        ["EVAL", LOOK_INTO_WRITES, 1, graves],
        ["GET", size],
        ["ZRANGE", news, 0, -1, "WITHSCORES"],
        *(["PTTL", each] for each in keys),
        ["EXISTS", *keys],
    )
    entries, states, places, tombs, buried, count, servers, *ttls, there = replies
    logged = {word(listed(each)[0]): _fields(each) for each in listed(entries)}
    known: dict[str, Facts] = {}
    for each in listed(states):
        key, text = (word(part).decode() for part in listed(each))
        state = json.loads(text)
        fields = logged[state.pop("id").encode()]
        assert fields["key"] == key.encode()
        known[key] = {"error": ""} | state | _without_claim(state)
    tombs_by_id = {word(listed(each)[0]): _fields(each) for each in listed(tombs)}
    ids = {word(listed(each)[0]).decode(): _grave_id(each) for each in listed(buried)}
    assert {name.encode(): key for name, key in ids.items()} == {
        fields["key"]: key for key, fields in tombs_by_id.items()
    }
    assert len(logged) == len(known)
    assert all(integer(ttl) in {-1, -2} for ttl in ttls[:-1])
    assert integer(ttls[-1]) != -1
    if integer(there) == 0:
        return {}
    return {
        "writes": {key: _only_known(state) for key, state in known.items()},
        "due": [word(listed(each)[0]).decode() for each in listed(places)],
        "log": sorted(fields["value"] for fields in logged.values()),
        "dead": [_tomb(fields) for fields in tombs_by_id.values()],
        "bytes": int(word(count)) if count is not None else 0,
        "news": {word(listed(e)[0]).decode(): _score(listed(e)[1]) for e in listed(servers)},
    }


def _fields(entry: Reply) -> dict[str, bytes]:
    pairs = [word(each) for each in listed(listed(entry)[1])]
    return {name.decode(): value for name, value in zip(pairs[::2], pairs[1::2], strict=True)}


def _grave_id(pair: Reply) -> bytes:
    state = json.loads(word(listed(pair)[1]))
    return str(state["id"]).encode()


def _without_claim(state: Facts) -> Facts:
    """What is left of a claim that is over says nothing."""
    return state if "token" in state else dict.fromkeys(("held", "ends", "attempt"))


def _only_known(state: Facts) -> Facts:
    return {name: value for name, value in state.items() if value is not None}


def _tomb(fields: dict[str, bytes]) -> Facts:
    return {name: value if name == "value" else value.decode() for name, value in fields.items()}


def _score(reply: Reply) -> int:
    assert isinstance(reply, float)
    return int(reply)
