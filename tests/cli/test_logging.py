"""What a command says about how it logs binds no one after it."""

import structlog

from leasekeeper.cli.job import log_to_stderr


def test_a_logger_that_has_been_used_can_be_told_to_log_otherwise() -> None:
    """`doctor` silences them; and a test that listens would hear nothing."""
    log = structlog.get_logger("long-lived")
    before = structlog.get_config()
    log_to_stderr("info")
    log.info("into standard error")
    structlog.configure(**before)
    with structlog.testing.capture_logs() as logs:
        log.info("heard")
    assert logs == [{"event": "heard", "log_level": "info"}]
