"""The wire vocabulary of sessions and connections."""

from collections.abc import Mapping

from attrs import field, frozen

from leasekeeper.messages.values import Label, Liveness, RequestId, Token

# --- Requests ---------------------------------------------------------------------------------


@frozen
class SessionOpen:
    """Says who the client is, and how it shows that it is alive."""

    client: Label | None = None
    token: Token | None = field(default=None, repr=False)
    liveness: Liveness = Liveness.PONG
    batch: bool = False


@frozen
class SessionHeartbeat:
    """A sign of life that renews every lease of the session."""


@frozen
class RpcCancel:
    """Cancels an outstanding request of the same connection."""

    id: RequestId


# --- Results ----------------------------------------------------------------------------------


@frozen
class SessionOpened:
    """The session, and what the server allows."""

    session: str
    server: str
    version: str
    protocol: int
    heartbeat_ms: int
    """A client of liveness "heartbeat" shows life at least this often, and within TTL / 3."""
    limits: Mapping[str, int]


@frozen
class HeartbeatSeen:
    """What a heartbeat renewed, and what was found to be gone."""

    lost: tuple[str, ...] = field(repr=False)
    renewed: int


@frozen
class CancelAnswer:
    """Whether there was something to cancel."""

    cancelled: bool


@frozen
class Done:
    """Nothing to report."""


# --- Notifications ----------------------------------------------------------------------------


@frozen
class ServerDraining:
    """This server is going away; connect to another after this time."""

    reconnect_after_ms: int
