"""Servers of ours, as processes of their own: started when first needed, stopped at the end."""

import contextlib
from collections.abc import Iterator

import attrs

from tests.conformance.vectors import Json
from tests.processes import RunningServer, ServerFailed, running_server


@attrs.frozen
class Kind:
    """How a server was started."""

    token: str | None
    volatile_writes: bool


@attrs.define
class Servers:
    """One shared server for each kind, started when it is first asked for, on the same store.

    A start that failed is remembered, so that a missing server fails every test at once rather
    than slowly.
    """

    _stack: contextlib.ExitStack
    _store: str = "memory"
    _shared: dict[Kind, RunningServer | ServerFailed] = attrs.field(factory=dict)

    @contextlib.contextmanager
    def given(self, given: dict[str, Json]) -> Iterator[RunningServer]:
        """The server that a scenario asks for."""
        token = given.get("token")
        assert token is None or isinstance(token, str)
        kind = Kind(token, bool(given.get("volatile_writes")))
        if given.get("private"):
            with self._started(kind) as server:
                yield server
        else:
            yield self._get(kind)

    def _get(self, kind: Kind) -> RunningServer:
        if kind not in self._shared:
            try:
                self._shared[kind] = self._stack.enter_context(self._started(kind))
            except ServerFailed as failure:
                self._shared[kind] = failure
        server = self._shared[kind]
        if isinstance(server, ServerFailed):
            raise server
        return server

    def _started(self, kind: Kind) -> contextlib.AbstractContextManager[RunningServer]:
        options = ["--allow-volatile-writes"] if kind.volatile_writes else []
        return running_server(kind.token, store=self._store, options=options)
