"""Judging what a lock service did by what its clients saw: a history in, violations out.

`spec/history.md` has the format and the checks. Nothing here knows how the service works, nor does
it read or print anything: the lines are given to it.
"""

from leasekeeper.verify.history import CHECKS, History, HistoryError, read
from leasekeeper.verify.report import Report, as_json, verify

__all__ = ["CHECKS", "History", "HistoryError", "Report", "as_json", "read", "verify"]
