# The project's only vocabulary: people, hooks and CI call these verbs. `./dev VERB` installs first.

set positional-arguments

bin := justfile_directory() / ".venv" / "bin"

export PATH := bin + ":" + env("PATH")
export UV_SYSTEM_CERTS := env("UV_SYSTEM_CERTS", "1")
export PYRIGHT_PYTHON_IGNORE_WARNINGS := "1"

# Compiled modules are kept, whatever the machine says: the tests start hundreds of processes.

export PYTHONDONTWRITEBYTECODE := ""

# List the verbs.
default:
    @just --justfile "{{ justfile() }}" --list --unsorted

# Install what uv.lock names; uv and just themselves stay.
sync:
    env -u VIRTUAL_ENV UV_PROJECT_ENVIRONMENT="{{ justfile_directory() }}/.venv" uv sync --frozen --inexact

# Run the server on its embedded store; further options go to `leasekeeper serve`.
[no-cd]
serve *options:
    @exec leasekeeper serve "$@"

# Style, formatting, the direction of imports, and drift of the generated schema.
lint:
    ruff check .
    ruff format --check .
    lint-imports
    python -m leasekeeper.wire.schema --check

# mypy in strict mode over everything, and pyright over the client's public types.
types:
    mypy
    mypy tests bench docs/check.py
    mypy spec/model/check.py
    # pyright does not follow the editable install, so it is told where things are.
    PYTHONPATH="clients/python:$(python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" \
        pyright --verifytypes leasekeeper_client --ignoreexternal

# The whole suite, on four workers, for most of it waits for real time; further options go to pytest.
test *options:
    pytest -q -n 4 --dist loadfile --no-loadscope-reorder "$@"

# What is worth running after every edit: no real processes, few Hypothesis examples.
fast *options:
    HYPOTHESIS_PROFILE=fast pytest -q -m "not system" "$@"

# Play the protocol's vectors: against servers of its own, one over each store, or any server, at URL.
conformance *url:
    {{ if url == "" { "pytest -q tests/conformance" } else { 'python -m tests.conformance "$@"' } }}

# Every branch of the pure layers is reached from their own test files.
cov:
    pytest -q --no-cov-on-fail --cov-branch --cov-fail-under=100 --cov-report=term-missing:skip-covered \
        --cov=leasekeeper.core tests/core
    pytest -q --no-cov-on-fail --cov-branch --cov-fail-under=100 --cov-report=term-missing:skip-covered \
        --cov=leasekeeper.wire tests/wire
    pytest -q --no-cov-on-fail --cov-branch --cov-fail-under=100 --cov-report=term-missing:skip-covered \
        --cov=leasekeeper.errors --cov=leasekeeper.messages tests/test_errors.py tests/test_messages.py

# Write spec/openrpc.json from the wire vocabulary.
schema:
    python -m leasekeeper.wire.schema

# Links between the documents lead somewhere, and their Python examples compile.
docs:
    python docs/check.py

# Measure the load shapes; further options go to `python -m bench`.
bench *options:
    python -m bench "$@"

# What an operation costs as names, connections, waiters and servers grow; ten minutes.
scale *options:
    python -m bench.scale "$@"

# Faults at random against a whole fleet, its history judged; e.g. --topology cluster --minutes 10.
nemesis *options:
    python -m tests.nemesis "$@"

# An hour of mixed load with a fault every 20 s: does anything grow?
soak *options:
    python -m tests.nemesis.soak "$@"

# Simulated worlds, each from a seed: --seeds 10000; --seed N replays one.
simulate *options:
    python -m tests.simulation "$@"

# The formal model: what holds, what must fail, what is reached. Wants spin and a C compiler.
model *options:
    python spec/model/check.py "$@"

# The mistakes that the suite makes on purpose, and what finds each.
mutants *options:
    python -m tests.mutants "$@"

# Bytes at random for what reads them, as long as one likes: TARGET --seconds 1800. Wants atheris.
fuzz *options:
    python -m tests.fuzz "$@"

# All that a change must pass.
check: lint types docs test cov
