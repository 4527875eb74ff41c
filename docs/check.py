"""Checks the documents: relative links lead somewhere, and Python examples are Python.

`python docs/check.py` looks at every Markdown file of the project. Links to other sites are not
followed: a build must not fail because somebody else's server does.
"""

import ast
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
FENCE: Final = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
CODE: Final = re.compile(r"`[^`\n]*`")
LINK: Final = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
HEADING: Final = re.compile(r"^#+ (.+)$", re.MULTILINE)


def documents() -> Iterator[Path]:
    """Every Markdown file that is ours."""
    for path in sorted(ROOT.rglob("*.md")):
        hidden_or_foreign = any(
            part.startswith(".") or part == "node_modules" for part in path.relative_to(ROOT).parts
        )
        if not hidden_or_foreign:
            yield path


def anchors(text: str) -> set[str]:
    """What `#fragment` may name, by GitHub's rule."""
    headings = HEADING.findall(FENCE.sub("", text))
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.replace(" ", "-") for heading in plain}


def broken_links(path: Path, text: str) -> Iterator[str]:
    """Links of a document that lead nowhere."""
    for link in LINK.findall(CODE.sub("", FENCE.sub("", text))):
        if re.match(r"[a-z+]+:", link):
            continue
        place, _, fragment = link.partition("#")
        target = (path.parent / place).resolve() if place else path
        if not target.exists():
            yield f"no such file: {link}"
        elif fragment and target.suffix == ".md" and fragment not in anchors(target.read_text()):
            yield f"no such heading: {link}"


def broken_examples(text: str) -> Iterator[str]:
    """Python examples that do not compile. Top-level `await` and `async with` are allowed."""
    for _, language, body in FENCE.findall(text):
        if language in {"python", "py"}:
            try:
                flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
                compile(textwrap.dedent(body), "example", "exec", flags=flags, dont_inherit=True)
            except SyntaxError as error:
                yield f"{error.msg}: {(error.text or body).strip()}"


def main() -> int:
    """Prints what is wrong; 1 if anything is."""
    wrong = [
        f"{path.relative_to(ROOT)}: {problem}"
        for path in documents()
        for text in [path.read_text()]
        for problem in [*broken_links(path, text), *broken_examples(text)]
    ]
    print("\n".join(wrong) or "The documents hold together.")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
