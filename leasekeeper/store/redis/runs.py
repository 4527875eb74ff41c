"""Which Redis process this server believes to be talking to, at each address.

A process that restarted, or a replica that was promoted, may lack what was acknowledged before.
Each partition's clock says which process kept it last, and every script compares. So data that
comes from another process is noticed before anything of it is believed; only a call that is under
way while the connections change may be carried out by a process that it was not meant for.
"""

from attrs import define, field, frozen

from leasekeeper.resp.handshake import Identity
from leasekeeper.resp.settings import Address

UNKNOWN_RUN = "?"
"""No process has this id, so a script that is given it does nothing."""


@frozen
class Aim:
    """What a call is aimed at. If it is another when the reply is there, the reply says nothing."""

    address: Address | None
    run: str
    changes: int


@define(eq=False)
class Runs:
    """See the module. It asks Redis nothing."""

    _runs: dict[Address, str] = field(factory=dict, init=False)
    _last: tuple[Address, str] | None = field(default=None, init=False)
    """The one master, where there is one at a time."""
    _former: set[tuple[Address, str]] = field(factory=set, init=False)
    _returned: set[Address] = field(factory=set, init=False)
    """Where a process is master again that had been replaced: its run id is the same as ever."""
    _changes: int = field(default=0, init=False)

    def connected(self, identity: Identity) -> None:
        """A connection to a master was made; it has not been used yet."""
        address, now = identity.address, (identity.address, identity.run_id)
        self._runs[address] = identity.run_id
        if identity.mode == "cluster" or now == self._last:
            return
        if self._last is not None:
            self._changes += 1
            self._former.add(self._last)
        if now in self._former:
            self._returned.add(address)
        self._last = now

    def aim_at(self, address: Address | None) -> Aim:
        """What a call to this address is aimed at, by what is known now."""
        run = UNKNOWN_RUN
        if address is not None and address not in self._returned:
            run = self._runs.get(address, UNKNOWN_RUN)
        return Aim(address, run, self._changes)

    def has_returned(self, address: Address | None) -> bool:
        """Whether the process there is to be distrusted, whatever its clock says."""
        return address in self._returned

    def distrusted(self, aim: Aim) -> None:
        """What the process there had is not believed any more."""
        if aim.address is not None and aim.changes == self._changes:
            self._returned.discard(aim.address)
