"""A byte stream to one address, or one line that says why there is none."""

import errno
import os
import socket
import ssl
from collections.abc import Iterator

import trio

from leasekeeper.resp.errors import CannotConnect
from leasekeeper.resp.settings import Address, Settings


async def dial(address: Address, settings: Settings) -> trio.abc.Stream:
    """Opens a stream, with TLS if the settings say so. The caller bounds the time, and closes it.

    Raises:
        CannotConnect: there is none to be had.

    Cancellation:
        Leaves no socket behind.
    """
    try:
        if address.path:
            return await trio.open_unix_socket(address.path)
        # Trio sets TCP_NODELAY, so a lone command is not held back.
        stream = await trio.open_tcp_stream(address.host, address.port)
    except UnicodeError:
        # What cannot even be looked up.
        raise CannotConnect(_why_unknown(address)) from None
    except OSError as error:
        raise CannotConnect(_why(address, error)) from None
    if settings.tls is None:
        return stream
    return await _secured(stream, address, settings.tls)


async def _secured(
    stream: trio.SocketStream, address: Address, context: ssl.SSLContext
) -> trio.abc.Stream:
    secured = trio.SSLStream(stream, context, server_hostname=address.host, https_compatible=True)
    try:
        await secured.do_handshake()
    except trio.BrokenResourceError as broken:
        await trio.aclose_forcefully(stream)
        raise CannotConnect(_why_insecure(address, broken.__cause__)) from None
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise
    return secured


def _why(address: Address, error: OSError) -> str:
    causes = list(_causes(error))
    if any(isinstance(cause, socket.gaierror) for cause in causes):
        return _why_unknown(address)
    numbers = {cause.errno for cause in causes if isinstance(cause, OSError)}
    if errno.ECONNREFUSED in numbers:
        return f"nothing listens at {address}: start Redis there, or correct the Redis URL"
    if errno.ENOENT in numbers:
        return f"there is no socket {address}: start Redis, or correct the Redis URL"
    if errno.EACCES in numbers or errno.EPERM in numbers:
        return f"{address} may not be opened: allow it, or correct the Redis URL"
    known = sorted(number for number in numbers if number is not None)
    problem = os.strerror(known[0]) if known else "unreachable"
    return f"{address} cannot be reached ({problem}): check the network, or correct the Redis URL"


def _why_unknown(address: Address) -> str:
    return f"the host {address.host} is not known: correct the name in the Redis URL"


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what it came from: Trio tries every address of a host, and groups."""
    yield error
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield from _causes(each)
    if error.__cause__ is not None:
        yield from _causes(error.__cause__)


def _why_insecure(address: Address, cause: BaseException | None) -> str:
    if isinstance(cause, ssl.SSLCertVerificationError):
        return (
            f"the certificate of {address} is not to be trusted ({cause.verify_message}): "
            "name its CA with ?ssl_ca_certs=FILE in the Redis URL"
        )
    return (
        f"{address} and we found no common TLS: if it has none, use a Redis URL without the "
        "second s of rediss; if it wants a client's certificate, name one with ?ssl_certfile=FILE"
    )
