"""The core of the cache, kept as a store keeps it: entries by key, a clock for each partition."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeAlias

from attrs import define, field

from leasekeeper.core.cache import Entry
from leasekeeper.core.fills import Ask, Closed, Conflict, Content, Fill, Intent, Seen, Stored
from leasekeeper.core.lock import Now
from leasekeeper.core.versions import Versions
from leasekeeper.messages import FillOutcome, Mark
from leasekeeper.store.redis.keys import partition_of

Meta: TypeAlias = "str | bool | list[Meta] | dict[str, Meta]"
"""What is kept of a key, as the scripts name it; numbers are text."""


@define(eq=False)
class CoreCache:
    """`Entry` and `Versions`, as the specification of what is answered, told and kept.

    What Redis loses it is told of: a clock that is forgotten begins anew, and the next call in a
    partition that has `lost` something distrusts what is there, once for each kind of loss.
    """

    us: int
    partitions: int
    records_max: int
    versions: dict[int, Versions] = field(factory=dict)
    entries: dict[str, Entry] = field(factory=dict)
    lost: dict[int, set[str]] = field(factory=dict)
    told: list[tuple[str, str]] = field(factory=list)
    """Server and key of each news."""

    @property
    def now(self) -> Now:
        """Its clock."""
        return Now(self.us // 1000, self.us)

    def partition_of(self, key: str) -> int:
        """As the store shares out keys."""
        return partition_of(key, self.partitions)

    def clock(self, partition: int) -> Versions:
        """The clock of a partition, for a call there."""
        versions = self.versions.get(partition)
        if versions is None:
            versions = self.versions[partition] = Versions(records_max=self.records_max)
            versions.distrust(self.now)
            self.lost.pop(partition, None)
        for _ in self.lost.pop(partition, ()):
            versions.distrust(self.now)
        return versions

    def forget_clocks(self, partitions: Iterable[int]) -> None:
        """These have expired, or were flushed."""
        for each in partitions:
            self.versions.pop(each, None)

    def flush(self) -> None:
        """Everything is gone."""
        self.versions.clear()
        self.entries.clear()
        self.lost.clear()

    def lose(self, partition: int, what: str) -> None:
        """Something of this partition is not to be believed any more."""
        self.lost.setdefault(partition, set()).add(what)

    def living(self) -> dict[str, Entry]:
        """The entries that matter still. What Redis has deleted by now does not come back."""
        now_ms = self.now.ms
        untils = {key: entry.keep_until_ms() for key, entry in self.entries.items()}
        for key, until_ms in untils.items():
            if until_ms is not None and until_ms < now_ms:
                del self.entries[key]
        over = {key for key, until_ms in untils.items() if until_ms == now_ms}
        return {key: entry for key, entry in self.entries.items() if key not in over}

    @contextmanager
    def step(self, key: str) -> Iterator[tuple[Entry, Versions]]:
        """One step on a key."""
        versions, now = self.clock(self.partition_of(key)), self.now
        entry = self.living().get(key) or Entry()
        yield entry, versions
        self.told += [(news.server, key) for news in entry.events]
        entry.events.clear()
        until_ms = entry.keep_until_ms()
        self.entries.pop(key, None)
        if until_ms is None or until_ms > now.ms:
            self.entries[key] = entry

    # --- As CacheStore ------------------------------------------------------------------------

    def look(self, key: str, ask: Ask) -> Seen:
        """As `CacheStore.look`."""
        with self.step(key) as (entry, versions):
            return entry.look(ask, versions, self.now)

    def fill(self, key: str, fill: str, content: Content, *, not_modified: bool) -> FillOutcome:
        """As `CacheStore.fill`."""
        with self.step(key) as (entry, versions):
            return entry.fill(fill, content, versions, self.now, not_modified=not_modified)

    def fail(self, key: str, fill: str, error: str, after_ms: int | None, jitter: float) -> None:
        """As `CacheStore.fail`."""
        with self.step(key) as (entry, _):
            entry.fail(fill, error, after_ms, jitter, self.now)

    def unshare(self, key: str, fill: str, ms: int) -> None:
        """As `CacheStore.unshare`."""
        with self.step(key) as (entry, _):
            entry.unshare(fill, ms, self.now)

    def give_up(self, key: str, fill: str, *, died: bool, jitter: float) -> None:
        """As `CacheStore.give_up`."""
        with self.step(key) as (entry, _):
            entry.give_up(fill, self.now, died=died, jitter=jitter)

    def wait_for(self, key: str, fill: str, on: str | None) -> None:
        """As `CacheStore.wait_for`."""
        with self.step(key) as (entry, _):
            entry.wait_for(fill, on)

    def waits_for(self, key: str) -> str | None:
        """As `CacheStore.waits_for`."""
        with self.step(key) as (entry, _):
            return entry.waits_for

    def set(self, key: str, content: Content) -> int | Conflict:
        """As `CacheStore.set`."""
        with self.step(key) as (entry, versions):
            return entry.set(content, versions, self.now)

    def invalidate(self, keys: Sequence[str], tags: Sequence[str], mark: Mark) -> None:
        """As `CacheStore.invalidate`: tags everywhere, then keys."""
        for each in range(self.partitions if tags else 0):
            self.clock(each).mark(tags, mark, self.now)
        for key in dict.fromkeys(keys):
            with self.step(key) as (entry, versions):
                entry.invalidate(mark, versions, self.now)

    def begin_write(
        self, key: str, write: str, tags: tuple[str, ...], ttl_ms: int
    ) -> Intent | Conflict:
        """As `CacheStore.begin_write`."""
        until_ms = self.now.ms + ttl_ms
        for each in self._elsewhere(key, tags):
            self.clock(each).open(tags, write, until_ms, self.now)
        with self.step(key) as (entry, versions):
            versions.open(tags, write, until_ms, self.now)
            begun = entry.begin(write, tags, ttl_ms, versions, self.now)
            if isinstance(begun, Conflict):
                versions.close(tags, write, self.now)
        if isinstance(begun, Conflict):
            for each in self._elsewhere(key, tags):
                self.clock(each).close(tags, write, self.now)
        return begun

    def close_write(
        self, key: str, write: str, content: Content | None, tags: tuple[str, ...]
    ) -> Closed:
        """As `CacheStore.close_write`."""
        if self.partitions > 1:
            with self.step(key) as (entry, _):
                tags = tuple(dict.fromkeys((*tags, *entry.tags_of(write))))
            for each in self._elsewhere(key, tags):
                self.clock(each).close(tags, write, self.now)
        with self.step(key) as (entry, versions):
            return entry.close(write, content, tags, versions, self.now)

    def put(self, key: str, content: Content) -> int | Conflict:
        """A write-behind."""
        with self.step(key) as (entry, versions):
            return entry.put(content, versions, self.now)

    def written(self, key: str, seq: int) -> None:
        """It is written."""
        with self.step(key) as (entry, versions):
            entry.written(seq, versions, self.now)

    def given_up(self, key: str, seq: int) -> None:
        """It will not be written."""
        with self.step(key) as (entry, _):
            entry.given_up(seq)

    def _elsewhere(self, key: str, tags: Sequence[str]) -> list[int]:
        own = self.partition_of(key)
        return [each for each in range(self.partitions) if each != own and tags]


# --- What is kept -----------------------------------------------------------------------------


def meta_of(entry: Entry) -> dict[str, Meta]:
    """What is kept of a key, without what is 0 or empty, as `cache_rules.lua` has it."""
    until_ms = entry.keep_until_ms()
    failure, stored = entry._failure, entry._stored
    meta: dict[str, Meta] = {
        "fills": [_fill(fill, each) for fill, each in entry._fills.items()],
        "intents": [
            _said({"write": write, "fence": each.fence, "ends": each.until_ms})
            | {"tags": list[Meta](each.tags)}
            for write, each in entry._intents.items()
        ],
        "tags": list[Meta](entry._tags),
        "news": _said(entry._news),
        "dropped": entry._dropped,
        "stored": _stored(stored) if stored else {},
        "failure": _said(
            {"error": failure.error, "retry": failure.retry_at_ms, "count": failure.count}
        )
        if failure
        else {},
    }
    meta |= _said(
        {
            "live": entry._live or "",
            "voided": entry._voided,
            "softened": entry._softened,
            "deaths": entry._deaths,
            "unshared": entry._unshared_until_ms,
            "tags_until": entry._tags_until_ms,
            "dirty": entry._dirty,
            "till": until_ms or 0,
        }
    )
    return without_nothing(meta)


def without_nothing(meta: dict[str, Meta]) -> dict[str, Meta]:
    """Only what says something."""
    return {name: value for name, value in meta.items() if value not in ("", "0", False, [], {})}


def _said(facts: Mapping[str, object]) -> dict[str, Meta]:
    return {name: str(value) for name, value in facts.items()}


def _fill(fill: str, each: Fill) -> dict[str, Meta]:
    known = _said(
        {"fill": fill, "fence": each.fence, "granted": each.granted_ms, "ms": each.fill_ms}
    )
    known["owner"] = each.owner
    return known | without_nothing(_said({"base": each.base, "on": each.waits_for or ""}))


def _stored(stored: Stored) -> dict[str, Meta]:
    content = stored.content
    kept = _said({"fence": stored.fence, "granted": stored.granted_ms, "at": stored.stored_ms})
    kept |= _said({"ttl": content.ttl_ms, "stale": content.stale_ms})
    return kept | without_nothing(
        {
            **_said({"fill": stored.fill, "etag": content.etag or ""}),
            "tags": list[Meta](content.tags),
            "none": content.value is None,
        }
    )


def value_of(entry: Entry) -> bytes:
    """Of what is stored, visible or not; a negative entry, or nothing, is empty."""
    return (entry._stored.content.value or b"") if entry._stored else b""


def deadlines(entry: Entry) -> list[int]:
    """When time changes something in a key."""
    ends = [entry._unshared_until_ms, entry._tags_until_ms, *entry._news.values()]
    for fill in entry._fills.values():
        ends += [fill.until_ms, fill.late_ms]
    ends += [intent.until_ms for intent in entry._intents.values()]
    if stored := entry._stored:
        half_ms = stored.stored_ms + stored.content.ttl_ms // 2
        ends += [half_ms, stored.fresh_until_ms, stored.stale_until_ms]
        if entry._softened:
            ends.append(entry._softened // 1000 + stored.content.stale_ms)
    if entry._failure:
        ends.append(entry._failure.retry_at_ms)
    return ends
