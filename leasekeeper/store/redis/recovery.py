"""After Redis lost data: grants pause, and what this server knows of is put back."""

from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import suppress
from typing import Final, Protocol

import structlog
import trio
from attrs import define, field
from redis.exceptions import ResponseError

from leasekeeper.errors import Outcome, Unavailable
from leasekeeper.messages import Key
from leasekeeper.resp.client import Client
from leasekeeper.resp.errors import Unanswered
from leasekeeper.resp.settings import Address
from leasekeeper.store.alarms import trio_ms
from leasekeeper.store.redis.calling import Caller, NameCall
from leasekeeper.store.redis.entries import entry_of_held
from leasekeeper.store.redis.hold import SETTLE_MS, RestartHold, Word
from leasekeeper.store.redis.interests import Holding, Interests
from leasekeeper.store.redis.keys import FENCE, Layout
from leasekeeper.store.redis.scripts import RELEASE, RESTORE

_log: Final[structlog.stdlib.BoundLogger] = structlog.get_logger(__name__)

PAUSED_BY_LOSS: Final = (
    "grants are paused, for Redis may have lost leases that are still believed in"
)
_AT_ONCE: Final = 200
_RETRY_S: Final = 0.2
_YOUNG_S: Final = 1
"""INFO tells the age of a Redis in whole seconds. One that shows this may be half as old again."""


class Background(Protocol):
    """Starts a task in the store's nursery; nothing happens if that is closed."""

    def __call__(self, work: Callable[..., Awaitable[None]], *args: object) -> None: ...


@define(eq=False)
class Recovery:
    """The restart hold of this server, with its hands and ears in Redis."""

    longest_ms: int
    layout: Layout
    interests: Interests
    in_background: Background
    hold: RestartHold = field(init=False)
    _client: Client = field(init=False, repr=False)
    _caller: Caller = field(init=False, repr=False)
    _on_over: Callable[[], None] = field(init=False, repr=False)
    _proof: tuple[str, int] | None = field(default=None, init=False)
    """A name that was granted lately, and its fence: it proves that nothing was flushed."""
    _began: trio.Event = field(factory=trio.Event, init=False)

    def __attrs_post_init__(self) -> None:
        self.hold = RestartHold(self.longest_ms, self._tell, self._begun)

    def use(self, client: Client, caller: Caller, on_over: Callable[[], None]) -> None:
        """Ties the knot: these need the hold, and it needs them. `on_over` hears when it ends."""
        self._client, self._caller, self._on_over = client, caller, on_over

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Joins a pause that others began, and sees every pause to its end, until cancelled."""
        if self.longest_ms:
            await self._join()
        task_status.started()
        while True:
            await self._began.wait()
            await self._see_through()
            _log.info("grants go on")
            self._on_over()

    def given(self, name: str, fence: int, ttl_ms: int) -> None:
        """A lease was granted through this server just now."""
        self._proof = name, fence
        self.hold.given(ttl_ms)

    def on_flushed(self, address: Address) -> None:
        """Redis says that everything was deleted; or another database of it, as it may turn out."""
        self.hold.flushed(address)

    def left_ms(self, name: str) -> int:
        """How long grants of this name are still paused; 0: they are not."""
        if not self.hold.left_ms:
            return 0
        return self.hold.left_at(
            self.hold.place_of(self._client.address_of(self.layout.lock(name)))
        )

    def paused(self, name: str) -> Unavailable:
        """What is said to those who ask for a lease meanwhile."""
        return Unavailable(Outcome.NONE, max(1, self.left_ms(name)), PAUSED_BY_LOSS)

    # --- To other servers ---------------------------------------------------------------------

    def _tell(self, word: Word) -> None:
        self.in_background(self._publish, word)

    async def _publish(self, word: Word) -> None:
        """Says it until it is said, for the others rely on it."""
        while True:
            line = word.line(trio_ms())
            try:
                await self._client.command("PUBLISH", self.layout.servers, line)
                return
            except (Unanswered, ResponseError) as problem:
                _log.warning("other servers were not told", line=line, error=str(problem))
            await trio.sleep(_RETRY_S)
            if word.until_ms <= trio_ms():
                return

    async def _tell_those_to_come(self) -> None:
        hold, left_ms = self.layout.hold, self.hold.left_ms
        try:
            if left_ms:
                await self._client.command("SET", hold, "1", "PX", left_ms, key=hold)
        except (Unanswered, ResponseError) as problem:
            _log.warning("servers that start now will not know the pause", error=str(problem))

    async def _join(self) -> None:
        """Asks for a pause of others; gives them time to come back to a Redis that just started."""
        hold = self.layout.hold
        try:
            if await self._is_young():
                await trio.sleep(SETTLE_MS / 1000)
            left_ms = await self._client.command("PTTL", hold, key=hold)
        except (Unanswered, ResponseError):
            left_ms = SETTLE_MS
        if isinstance(left_ms, int) and left_ms > 0:
            self.hold.join(left_ms)

    async def _is_young(self) -> bool:
        for master in self._client.masters:
            info = await self._client.command("INFO", "server", address=master)
            lines = info.decode().splitlines() if isinstance(info, bytes) else []
            ages = [line.partition(":")[2] for line in lines if line.startswith("uptime_in_sec")]
            if any(int(age) <= _YOUNG_S for age in ages):
                return True
        return False

    # --- A pause ------------------------------------------------------------------------------

    def _begun(self) -> None:
        self._began.set()

    async def _see_through(self) -> None:
        """Puts back what was lost; again if more is lost meanwhile. Returns at its end."""
        while left_ms := self.hold.left_ms:
            with trio.move_on_after(left_ms / 1000):
                self._began = trio.Event()
                if self.hold.doubtful:
                    await self._resolve()
                    continue
                self.in_background(self._tell_those_to_come)
                await self._restore_all()
                await self._began.wait()
        self._began = trio.Event()

    async def _resolve(self) -> None:
        """Finds out whether it was another database that was flushed. Before any restoring."""
        if self._proof is None:
            self.hold.confirm(sure=False)
            return
        name, fence = self._proof
        key = self.layout.keys(name)[FENCE]
        pauses, found = self.hold.pauses, None
        try:
            found = await self._client.command("GET", key, key=key)
        except (Unanswered, ResponseError) as problem:
            _log.warning("it is not known what was flushed", error=str(problem))
        if self.hold.pauses != pauses:
            return  # another word came meanwhile, maybe of another flush
        if found == str(fence).encode():
            self.hold.dismiss()
        else:
            self.hold.confirm()

    # --- Putting back -------------------------------------------------------------------------

    async def put_back(self, keys: Collection[Key]) -> Collection[Key]:
        """Puts these back, ahead of all others, if they were lost; those that are there again.

        Only during a pause, and only what was granted through this server and is not over.
        """
        while self.hold.doubtful:
            await self._resolve()
        lost: list[tuple[str, Holding]] = []
        for name, lease in keys:
            interest = self.interests.find(name)
            if interest and lease in interest.holdings and self.left_ms(name):
                lost.append((name, interest.holdings[lease]))
        failed = {(name, held.claim.lease) for name, held in await self._restore(lost)}
        back = {(name, held.claim.lease) for name, held in lost if self._is_held(name, held)}
        return back - failed

    async def _restore_all(self) -> None:
        """Every lease that was granted through this server, until each is there or over."""
        everything = [
            (name, holding)
            for name, interest in self.interests
            if interest.holdings and self.left_ms(name)
            for holding in interest.holdings.values()
        ]
        while everything:
            # Somebody may have been granted one a moment ago, and gives it back.
            everything = await self._restore(everything)
            if everything:
                with trio.move_on_after(_RETRY_S):
                    await self._began.wait()
            if self._began.is_set():
                return

    async def _restore(self, leases: Sequence[tuple[str, Holding]]) -> list[tuple[str, Holding]]:
        """Those that are neither there nor over. What was given up meanwhile is not put back."""
        failed: list[tuple[str, Holding]] = []
        for start in range(0, len(leases), _AT_ONCE):
            batch = [each for each in leases[start : start + _AT_ONCE] if self._is_held(*each)]
            answers = await self._caller.call_many([_restoring(*each) for each in batch])
            for each, answer in zip(batch, answers, strict=True):
                if isinstance(answer, Unavailable) or answer[0] == b"missing":
                    failed.append(each)
                else:
                    self._unless_given_up(*each)
        return failed

    def _unless_given_up(self, name: str, holding: Holding) -> None:
        """It was put back. A release that came meanwhile may have been carried out before."""
        interest, lease = self.interests.find(name), holding.claim.lease
        if interest and (lease in interest.holdings or lease in interest.waiters):
            return
        self.in_background(self._release, name, lease)

    async def _release(self, name: str, lease: str) -> None:
        with suppress(Unavailable):  # then it runs out by itself
            await self._caller.call(name, RELEASE, lease, self._caller.server)

    def _is_held(self, name: str, holding: Holding) -> bool:
        interest = self.interests.find(name)
        here = interest and interest.holdings.get(holding.claim.lease)
        return here is holding and holding.expires_ms > trio_ms()


def _restoring(name: str, holding: Holding) -> NameCall:
    claim, now_ms = holding.claim, trio_ms()
    left_ms, held_ms = max(1, holding.expires_ms - now_ms), now_ms - holding.since_ms
    return NameCall(
        name, RESTORE, (claim.lease, entry_of_held(claim, holding.fence), left_ms, held_ms)
    )
