"""Whatever bytes come in: what reads them says what they are, or that they are none.

`targets` has a function for each reader, which raises if it went wrong on some bytes. The suite
plays the corpus and what a little chance makes of it; `python -m tests.fuzz` lets atheris, which
sees what code the bytes reach, make up more for as long as one likes.
"""
