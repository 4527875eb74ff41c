"""`lease.acquire_all`: several names under one lease id, all or nothing."""

from secrets import token_hex

import trio
from attrs import evolve

from leasekeeper.core.lock import Missing
from leasekeeper.errors import Lost, RpcError, Unavailable
from leasekeeper.messages import LeaseAcquire, LeaseAcquireAll, LeaseGrant, LeaseGrants
from leasekeeper.service.leases import Leases
from leasekeeper.service.session import Session, Stage, Tenure, wait_until
from leasekeeper.store.alarms import trio_ms
from leasekeeper.store.api import Renewal


async def acquire_all(leases: Leases, session: Session, ask: LeaseAcquireAll) -> LeaseGrants:
    """Asks for several names in sorted order, so that two callers cannot deadlock.

    `waited_ms` of each grant is the wait for all of them together, and every lease is renewed when
    the last is there, so that a holder's deadline holds for each.

    Raises:
        Lost: one was lost while another was waited for.
        As `Leases.acquire`.

    Cancellation:
        As `Leases.acquire`, for all of them.
    """
    taken: list[Tenure] = []
    try:
        return await _all_or_nothing(leases, session, ask, taken)
    except RpcError:
        raise
    except BaseException:  # cancelled, maybe while it was giving back: then it is a group
        for tenure in taken:
            _give_up(leases, tenure)
        raise
    finally:
        for tenure in taken:
            tenure.requests -= 1


async def _all_or_nothing(
    leases: Leases, session: Session, ask: LeaseAcquireAll, taken: list[Tenure]
) -> LeaseGrants:
    """Adds to `taken` what it takes. With an error, that is given back first."""
    lease = ask.lease or token_hex(16)
    until = wait_until(ask.wait_ms)
    grants: list[LeaseGrant] = []
    try:
        for name in sorted(ask.names):
            grants.append(await _acquire_one(leases, session, ask.one(name, lease), until))
            if tenure := leases.tenures.find((name, lease)):
                tenure.requests += 1
                taken.append(tenure)
        answer = await _renew_all(leases, grants, taken)
        if any(tenure.stage is Stage.OVER for tenure in taken):
            raise Lost  # one went while the store was asked
    except RpcError:
        # What another answer told of is believed in: only who cancels gives it up.
        unwanted = [tenure for tenure in taken if not tenure.promised and _give_up(leases, tenure)]
        async with trio.open_nursery() as nursery:
            for tenure in unwanted:
                nursery.start_soon(leases.unwanted.hurry, tenure.key)
        raise
    for tenure in taken:
        tenure.promised = True
    return answer


def _give_up(leases: Leases, tenure: Tenure) -> bool:
    """Unless a repeat of this request wants it."""
    if tenure.requests > 1:
        return False
    leases.abandon(tenure)
    return True


async def _acquire_one(
    leases: Leases, session: Session, ask: LeaseAcquire, until: float
) -> LeaseGrant:
    if ask.wait_ms:  # neither "at once" nor "for ever"
        left_ms = max(0, int((until - trio.current_time()) * 1000))
        ask = evolve(ask, wait_ms=left_ms)
    return await leases.acquire(session, ask, alone=False)


async def _renew_all(leases: Leases, grants: list[LeaseGrant], taken: list[Tenure]) -> LeaseGrants:
    waited_ms = sum(grant.waited_ms for grant in grants)
    renewed: list[LeaseGrant] = []
    held = {tenure.name: tenure for tenure in taken}
    asked_ms = trio_ms()
    answers = await leases.store.renew([Renewal(g.name, g.lease) for g in grants])
    for grant, answer in zip(grants, answers, strict=True):
        if isinstance(answer, Missing):
            raise Lost
        if isinstance(answer, Unavailable):
            raise answer
        if (tenure := held.get(grant.name)) and tenure.stage is Stage.HELD:
            leases.renewals.plan(tenure, asked_ms, answer.ttl_ms)
        renewed.append(evolve(grant, ttl_ms=answer.ttl_ms, waited_ms=waited_ms))
    return LeaseGrants(tuple(renewed))
