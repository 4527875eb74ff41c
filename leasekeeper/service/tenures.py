"""All tenures of this server, found by key and by name, and counted by session."""

from collections.abc import Iterable, Iterator

import trio
from attrs import define, field

from leasekeeper.core.lock import Granted
from leasekeeper.errors import RpcError
from leasekeeper.messages import Key
from leasekeeper.service.metrics import Metrics
from leasekeeper.service.session import Stage, Tenure


@define
class Tenures:
    """The one place where a tenure enters, is held, and leaves; and where grants are counted.

    It does not talk to the store, and tells nobody.
    """

    metrics: Metrics = field(repr=False)
    _by_key: dict[Key, Tenure] = field(factory=dict, init=False, repr=False)
    _held_by_name: dict[str, dict[Key, Tenure]] = field(factory=dict, init=False, repr=False)
    _held: int = field(default=0, init=False)

    # Invariants: a tenure is in _by_key and in its session's tenures, or in neither and OVER; it
    # is in _held_by_name, and counted in session.held and _held, exactly while it is HELD.

    def __attrs_post_init__(self) -> None:
        self.metrics.leases_held.set_function(lambda: self._held)
        self.metrics.leases_waiting.set_function(lambda: len(self._by_key) - self._held)

    def __len__(self) -> int:
        return len(self._by_key)

    def __contains__(self, key: Key) -> bool:
        return key in self._by_key

    def __iter__(self) -> Iterator[Tenure]:
        return iter(self._by_key.values())

    def find(self, key: Key) -> Tenure | None:
        """The tenure of this lease id on this name."""
        return self._by_key.get(key)

    def held(self, name: str) -> Iterable[Tenure]:
        """Those that hold this name, on this server."""
        return self._held_by_name.get(name, {}).values()

    def enter(self, tenure: Tenure) -> None:
        """Takes a new tenure in. Its key is free."""
        assert tenure.key not in self._by_key
        self._by_key[tenure.key] = tenure
        tenure.session.tenures[tenure.key] = tenure

    def hold(self, tenure: Tenure, grant: Granted) -> None:
        """The store granted it, or granted it again; a fence that is known already is no news."""
        assert tenure.stage is not Stage.OVER
        if tenure.fence < grant.fence:
            self.metrics.lease_grants[tenure.claim.mode].inc()
            self.metrics.lease_acquire_wait.observe(grant.waited_ms / 1000)
        tenure.fence = grant.fence
        if tenure.stage is not Stage.HELD:
            tenure.stage = Stage.HELD
            tenure.session.held += 1
            self._held += 1
            self._held_by_name.setdefault(tenure.name, {})[tenure.key] = tenure
        tenure.settle(grant)

    def told(self, tenure: Tenure) -> None:
        """The request that waited for it has its grant."""
        if tenure.released_s is not None:
            self.metrics.lease_hand_off.observe(trio.current_time() - tenure.released_s)
            tenure.released_s = None

    def leave(self, tenure: Tenure, outcome: RpcError) -> None:
        """It holds and waits for nothing any more; requests that wait on it get `outcome`."""
        if tenure.stage is Stage.OVER:
            return
        if tenure.stage is Stage.HELD:
            tenure.session.held -= 1
            self._held -= 1
            held = self._held_by_name[tenure.name]
            del held[tenure.key]
            if not held:
                del self._held_by_name[tenure.name]
        tenure.stage = Stage.OVER
        del self._by_key[tenure.key]
        del tenure.session.tenures[tenure.key]
        tenure.settle(outcome)
