"""`resource` and `updates`: fences kept old writers out, and no acknowledged write was lost."""

from collections import Counter, defaultdict
from typing import Final

from leasekeeper.verify.faults import Faults
from leasekeeper.verify.history import History, HistoryError
from leasekeeper.verify.result import Result, ended, told
from leasekeeper.verify.vocabulary import Applied, FinalValues, Outcome, Write

RESOURCE: Final = "resource"
UPDATES: Final = "updates"
_SHOWN_MAX: Final = 60


def check_resource(history: History, faults: Faults) -> Result:
    """Fences never go down in the order in which a resource applied writes.

    It does not ask whether the writers held anything.
    """
    result = Result(RESOURCE, "applied writes")
    resources: dict[str, list[Applied]] = defaultdict(list)
    for applied in history.of(Applied):
        resources[applied.resource].append(applied)
        result.looked_at += 1
    for some in resources.values():
        some.sort(key=lambda each: (each.index, each.at, each.line))
        highest = last = some[0]
        since: dict[int, Applied] = {faults.before(RESOURCE, last.at): last}
        for now in some[1:]:
            if now.index == last.index and (now.fence, now.value) != (last.fence, last.value):
                _wrong(result, faults, f"two writes are number {now.index}", last, now)
            near = since.get(faults.until(RESOURCE, now.at))
            if near is not None and near.fence > now.fence:
                _wrong(result, faults, f"{now.fence} was applied after {near.fence}", near, now)
            elif highest.fence > now.fence:
                what = f"{now.fence} was applied after {highest.fence}"
                _wrong(result, faults, what, highest, now)
            era = faults.before(RESOURCE, now.at)
            if era not in since or since[era].fence <= now.fence:
                since[era] = now
            if highest.fence <= now.fence:
                highest = now
            last = now
    return result


def _wrong(result: Result, faults: Faults, what: str, earlier: Applied, later: Applied) -> None:
    result.wrong(
        f"{later.resource}: {what}",
        *(
            told(each, f"applied {_short(each.value)} with fence {each.fence} as {each.index}")
            for each in (earlier, later)
        ),
        excuse=faults.excuse(RESOURCE, min(earlier.at, later.at), max(earlier.at, later.at)),
    )


def check_updates(history: History, faults: Faults) -> Result:
    """What was acknowledged is there at the end, once, and nothing that nobody wrote.

    It does not look at resources of which no end is known, nor at the order of values.

    Raises:
        HistoryError: a value is written twice.
    """
    result = Result(UPDATES, "writes")
    finals: dict[str, FinalValues] = {}
    for final in history.of(FinalValues):
        if final.resource not in finals or finals[final.resource].at <= final.at:
            finals[final.resource] = final
    writes: dict[str, dict[str, Write]] = {resource: {} for resource in finals}
    for write in history.of(Write):
        if write.resource in writes:
            if write.value in writes[write.resource]:
                raise HistoryError(write.line, f"{_short(write.value)} was written before")
            writes[write.resource][write.value] = write
            result.looked_at += 1
    for resource, final in finals.items():
        _compare(final, writes[resource], history, faults, result)
    return result


def _compare(
    final: FinalValues,
    writes: dict[str, Write],
    history: History,
    faults: Faults,
    result: Result,
) -> None:
    values = Counter(final.values)
    for write in writes.values():
        shown = ended(write, f"wrote {_short(write.value)} with fence {write.fence}")
        excuse = faults.excuse(UPDATES, write.began, final.at)
        there = values[write.value]
        if write.ok and not there and write.ended + history.header.clock_error_us <= final.at:
            end = told(final, f"holds {len(final.values)} values without it")
            result.wrong(f"{final.resource}: a write was lost", shown, end, excuse=excuse)
        elif write.outcome is Outcome.FAIL and there:
            end = told(final, "holds it all the same")
            result.wrong(f"{final.resource}: a refused write is there", shown, end, excuse=excuse)
        elif there > 1:
            end = told(final, f"holds it {there} times")
            result.wrong(f"{final.resource}: a write is there twice", shown, end, excuse=excuse)
    for value in values.keys() - writes.keys():
        result.wrong(
            f"{final.resource}: a value is there that nobody wrote",
            told(final, f"holds {_short(value)}"),
            excuse=faults.excuse(UPDATES, history.first_at, final.at),
        )


def _short(value: str) -> str:
    return repr(value if len(value) <= _SHOWN_MAX else f"{value[:_SHOWN_MAX]}...")
