"""Plays the vectors of ``spec/vectors`` against a live server, whoever wrote it.

``python -m tests.conformance ws://127.0.0.1:7420/`` tries any server; ``pytest tests/conformance``
starts one of ours. Nothing here imports the server: the two meet on the wire alone.
"""
