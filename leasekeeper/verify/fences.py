"""`fences`: each grant of a name has a fence above those of all grants before it (L2)."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Final

from attrs import frozen

from leasekeeper.verify.faults import Faults
from leasekeeper.verify.history import History
from leasekeeper.verify.leases import Ends, turns_of
from leasekeeper.verify.result import Evidence, Result, begun, ended, told
from leasekeeper.verify.vocabulary import Acquire, Held

CHECK: Final = "fences"


@frozen
class _Grant:
    """One lease with one fence, whoever asked for it however often."""

    name: str
    lease: str
    fence: int
    asked: Acquire
    """The first request that it may be the answer to."""
    answered: Acquire
    """The first that it is the answer to."""

    @property
    def shown(self) -> Evidence:
        """The line that tells of it."""
        return ended(self.answered, f"was granted {self.name} ({self.lease}), fence {self.fence}")


def check(history: History, faults: Faults) -> Result:
    """Looks at each name's grants in the order of time.

    It does not look at grants that nobody was told of.
    """
    result = Result(CHECK, "grants")
    acquires: dict[str, list[Acquire]] = defaultdict(list)
    for acquire in history.of(Acquire):
        acquires[acquire.name].append(acquire)
    ends = Ends(history)
    for some in acquires.values():
        grants: list[_Grant] = []
        for turn in turns_of(some, ends):
            grants += _grants_of(turn)
            _repeats_agree(turn, ends, faults, result)
        result.looked_at += len(grants)
        _nothing_twice(grants, faults, result)
        _rising(grants, history.header.clock_error_us, faults, result)
    _beliefs_agree(history, acquires, faults, result)
    return result


# --- What must hold ---------------------------------------------------------------------------


def _grants_of(turn: Sequence[Acquire]) -> Iterable[_Grant]:
    first: dict[int, Acquire] = {}
    for acquire in turn:
        if acquire.ok and (
            acquire.fence not in first or acquire.ended < first[acquire.fence].ended
        ):
            first[acquire.fence] = acquire
    for fence, answered in first.items():
        yield _Grant(answered.name, answered.lease, fence, turn[0], answered)


def _repeats_agree(turn: Sequence[Acquire], ends: Ends, faults: Faults, result: Result) -> None:
    """Two answers about one lease have one fence, unless it may have ended between them."""
    granted = sorted((each for each in turn if each.ok), key=lambda each: each.ended)
    for first, second in pairwise(granted):
        if first.fence == second.fence or ends.perhaps(first, second):
            continue
        if faults.overlap(first.began, second.ended) or any(
            faults.dropped(each.process, first.began, second.ended) for each in (first, second)
        ):
            continue
        result.wrong(
            f"one lease of {first.name} has two fences",
            ended(first, f"was granted {first.name} ({first.lease}), fence {first.fence}"),
            ended(second, f"was granted {second.name} ({second.lease}), fence {second.fence}"),
            excuse=faults.excuse(CHECK, first.began, second.ended),
        )


def _nothing_twice(grants: Iterable[_Grant], faults: Faults, result: Result) -> None:
    seen: dict[int, _Grant] = {}
    for grant in sorted(grants, key=lambda each: each.answered.ended):
        other = seen.setdefault(grant.fence, grant)
        if other.lease != grant.lease:
            result.wrong(
                f"{grant.name}: fence {grant.fence} was given to two leases",
                other.shown,
                grant.shown,
                excuse=faults.excuse(
                    CHECK,
                    min(other.asked.began, grant.asked.began),
                    max(other.answered.ended, grant.answered.ended),
                ),
            )


def _rising(grants: Sequence[_Grant], clock_error_us: int, faults: Faults, result: Result) -> None:
    """A grant that was asked for after another was answered has the greater fence.

    Pairs with an excuse between them must not hide pairs without one: so the highest fence is
    known of all, and of those since each excuse.
    """
    answered = sorted(grants, key=lambda each: each.answered.ended)
    highest: _Grant | None = None
    since: dict[int, _Grant] = {}
    at = 0
    for grant in sorted(grants, key=lambda each: each.asked.began):
        while (
            at < len(answered) and answered[at].answered.ended + clock_error_us <= grant.asked.began
        ):
            earlier = answered[at]
            era = faults.before(CHECK, earlier.asked.began)
            if era not in since or since[era].fence < earlier.fence:
                since[era] = earlier
            if highest is None or highest.fence < earlier.fence:
                highest = earlier
            at += 1
        near = since.get(faults.until(CHECK, grant.answered.ended))
        if near is not None and near.fence > grant.fence:
            _fell(near, grant, faults, result)
        elif highest is not None and highest.fence > grant.fence:
            _fell(highest, grant, faults, result)


def _fell(earlier: _Grant, later: _Grant, faults: Faults, result: Result) -> None:
    result.wrong(
        f"{later.name}: fence {later.fence} was given after {earlier.fence}",
        earlier.shown,
        begun(later.asked, f"asks for {later.name} ({later.lease})"),
        later.shown,
        excuse=faults.excuse(CHECK, earlier.asked.began, later.answered.ended),
    )


def _beliefs_agree(
    history: History,
    acquires: dict[str, list[Acquire]],
    faults: Faults,
    result: Result,
) -> None:
    """Whoever says that he holds a lease names a fence that nobody else was granted."""
    owners = {
        (name, each.fence): each for name, some in acquires.items() for each in some if each.ok
    }
    for held in history.of(Held):
        owner = owners.get((held.name, held.fence))
        if owner is not None and owner.lease != held.lease:
            result.wrong(
                f"{held.name}: fence {held.fence} was given to two leases",
                ended(owner, f"was granted {owner.name} ({owner.lease}), fence {owner.fence}"),
                told(held, f"holds {held.name} ({held.lease}), fence {held.fence}"),
                excuse=faults.excuse(CHECK, min(owner.began, held.at), max(owner.ended, held.at)),
            )
