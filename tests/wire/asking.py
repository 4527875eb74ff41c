"""What the tests of the codec ask it, and how they look at what comes out."""

from collections.abc import Mapping
from typing import Any, Final, get_args

import attrs
import orjson

from leasekeeper.errors import RpcError
from leasekeeper.messages import Absent, Json
from leasekeeper.wire.codec import Request, decode_frame

LEASE: Final = "0123456789abcdefABCDEF0123456789"


def decode_one(message: object) -> Request:
    """The only request of a frame that is no batch."""
    frame = decode_frame(orjson.dumps(message))
    assert not frame.batch
    (request,) = frame.requests
    return request


def error_of(request: Request) -> RpcError:
    """Why a request cannot be carried out."""
    assert isinstance(request.params, RpcError)
    return request.params


def as_sent(value: Any) -> Any:  # noqa: ANN401 # JSON
    """A value of the vocabulary as a peer has it, by another way than the encoder's."""
    match value:
        case Json(text):
            return orjson.loads(text)
        case tuple():
            return [as_sent(each) for each in value]
        case Mapping():
            return {name: as_sent(each) for name, each in value.items()}
    if not attrs.has(type(value)):
        return value
    members = [(each, getattr(value, each.name)) for each in attrs.fields(type(value))]
    return {
        each.name: as_sent(member)
        for each, member in members
        if member is not None or Absent() not in get_args(each.type)
    }
