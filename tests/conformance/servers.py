"""Servers of ours, as processes of their own: started when first needed, stopped at the end."""

import contextlib
from collections.abc import Iterator

import attrs

from tests.conformance.vectors import Json
from tests.processes import RunningServer, ServerFailed, running_server


@attrs.define
class Servers:
    """One shared server for each token, started when it is first asked for, on the same store.

    A start that failed is remembered, so that a missing server fails every test at once rather
    than slowly.
    """

    _stack: contextlib.ExitStack
    _store: str = "memory"
    _shared: dict[str | None, RunningServer | ServerFailed] = attrs.field(factory=dict)

    @contextlib.contextmanager
    def given(self, given: dict[str, Json]) -> Iterator[RunningServer]:
        """The server that a scenario asks for."""
        token = given.get("token")
        assert token is None or isinstance(token, str)
        if given.get("private"):
            with running_server(token, store=self._store) as server:
                yield server
        else:
            yield self._get(token)

    def _get(self, token: str | None) -> RunningServer:
        if token not in self._shared:
            try:
                self._shared[token] = self._stack.enter_context(
                    running_server(token, store=self._store)
                )
            except ServerFailed as failure:
                self._shared[token] = failure
        server = self._shared[token]
        if isinstance(server, ServerFailed):
            raise server
        return server
