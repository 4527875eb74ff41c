"""`writes`: the last value that was put is written, none after a later one, and nothing else."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Final

from attrs import define, field

from leasekeeper.verify.faults import Faults
from leasekeeper.verify.history import History, HistoryError
from leasekeeper.verify.result import Result, begun, ended, told
from leasekeeper.verify.vocabulary import Outcome, Put, Stored, StoredFinal

CHECK: Final = "writes"


@define
class _Row:
    """All that is said of one key in one queue."""

    name: str
    puts: dict[str, Put] = field(factory=dict)
    """By value."""
    stored: list[Stored] = field(factory=list)
    final: StoredFinal | None = None


def check(history: History, faults: Faults) -> Result:
    """Looks at what was put, and what the database took, key by key.

    It does not ask for every value: a put may replace another that nobody has claimed.

    Raises:
        HistoryError: a value is put twice.
    """
    result = Result(CHECK, "puts")
    rows: dict[tuple[str, str], _Row] = {}

    def row_of(said: Put | Stored | StoredFinal) -> _Row:
        return rows.setdefault((said.queue, said.key), _Row(f"{said.queue}/{said.key}"))

    for put in history.of(Put):
        puts = row_of(put).puts
        if put.value in puts:
            raise HistoryError(put.line, f"{put.value!r} was put before")
        puts[put.value] = put
        result.looked_at += 1
    for stored in history.of(Stored):
        row_of(stored).stored.append(stored)
    for final in history.of(StoredFinal):
        row = row_of(final)
        if row.final is None or row.final.at <= final.at:
            row.final = final
    for row in rows.values():
        row.stored.sort(key=lambda each: (each.at, each.line))
        judge = _Judge(row, history, faults, result)
        judge.seqs_rise()
        judge.stored_in_order()
        judge.stored_was_put()
        judge.nothing_lost()
        judge.final_is_last()
    return result


@define
class _Judge:
    """What must hold of one key."""

    row: _Row
    history: History
    faults: Faults
    result: Result

    def _puts(self) -> Sequence[Put]:
        return [each for each in self.row.puts.values() if each.ok]

    def seqs_rise(self) -> None:
        """A put that began after another was acknowledged has the greater number."""
        answered = sorted(self._puts(), key=lambda each: each.ended)
        highest: Put | None = None
        at = 0
        for put in sorted(answered, key=lambda each: each.began):
            now = put.began - self.history.header.clock_error_us
            while at < len(answered) and answered[at].ended <= now:
                if highest is None or highest.seq < answered[at].seq:
                    highest = answered[at]
                at += 1
            if highest is not None and highest.seq >= put.seq:
                self.result.wrong(
                    f"{self.row.name}: a later put has no greater number",
                    ended(highest, f"has put {highest.value!r}, seq {highest.seq}"),
                    begun(put, f"puts {put.value!r}"),
                    ended(put, f"has put it, seq {put.seq}"),
                    excuse=self.faults.excuse(CHECK, highest.began, put.ended),
                )

    def stored_in_order(self) -> None:
        """Numbers never go down, and fences rise; but the same may be stored twice."""
        for one, two in pairwise(self.row.stored):
            if two.seq < one.seq:
                what = f"number {two.seq} was stored after {one.seq}"
            elif two.fence < one.fence or (two.fence == one.fence and two.seq != one.seq):
                what = f"fence {two.fence} was stored after {one.fence}"
            elif two.seq == one.seq and two.value != one.value:
                what = f"two values have number {two.seq}"
            else:
                continue
            self.result.wrong(
                f"{self.row.name}: {what}",
                *(told(each, _stored(each)) for each in (one, two)),
                excuse=self.faults.excuse(CHECK, one.at, two.at),
            )

    def stored_was_put(self) -> None:
        """Whatever is stored was put, and under its own number."""
        by_seq = {put.seq: put for put in self._puts()}
        for stored in self.row.stored:
            put = self.row.puts.get(stored.value)
            numbered = by_seq.get(stored.seq)
            if put is None or put.outcome is Outcome.FAIL:
                what = "a value was stored that nobody put"
            elif numbered is not None and numbered.value != stored.value:
                what = f"a value was stored as number {stored.seq}, which another has"
            else:
                continue
            evidence = [] if numbered is None else [ended(numbered, _put(numbered))]
            self.result.wrong(
                f"{self.row.name}: {what}",
                *evidence,
                told(stored, _stored(stored)),
                excuse=self.faults.excuse(CHECK, self.history.first_at, stored.at),
            )

    def nothing_lost(self) -> None:
        """What was acknowledged is stored in the end, or something newer is.

        Where nothing is said of the end, puts have some time before it.
        """
        final, stored = self.row.final, self.row.stored
        if final is None:
            by = self.history.last_at - self.history.header.recovery_us
        else:
            by = final.at - self.history.header.clock_error_us
        last = stored[-1].seq if stored else None
        for put in self._puts():
            if put.ended <= by and (last is None or last < put.seq):
                evidence = [told(stored[-1], _stored(stored[-1]))] if stored else []
                self.result.wrong(
                    f"{self.row.name}: a put was lost",
                    ended(put, _put(put)),
                    *evidence,
                    excuse=self.faults.excuse(CHECK, put.began, self.history.last_at),
                )

    def final_is_last(self) -> None:
        """What is there at the end is what was stored last."""
        final = self.row.final
        if final is None:
            return
        last = self.row.stored[-1] if self.row.stored else None
        if last is not None and last.at > final.at + self.history.header.clock_error_us:
            return  # it was not the end
        if last is None or last.value != final.value:
            evidence = [] if last is None else [told(last, _stored(last))]
            self.result.wrong(
                f"{self.row.name}: it does not end with what was stored last",
                *evidence,
                told(final, f"holds {final.value!r}"),
                excuse=self.faults.excuse(CHECK, self.history.first_at, final.at),
            )


def _put(put: Put) -> str:
    return f"has put {put.value!r}, seq {put.seq}"


def _stored(stored: Stored) -> str:
    return f"stores {stored.value!r}, seq {stored.seq}, fence {stored.fence}"
