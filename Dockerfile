# syntax=docker/dockerfile:1
#
#   docker build -t leasekeeper .
#   docker run --read-only -p 7420:7420 -e LEASEKEEPER_TOKEN leasekeeper
#
# The default command listens on every address of the container, and leasekeeper refuses to listen
# beyond loopback without a token: set LEASEKEEPER_TOKEN, or mount a file and pass --token-file.
# It writes no files, so --read-only and --cap-drop ALL are fine.

ARG PYTHON=3.13

FROM python:${PYTHON}-slim AS builder
RUN pip install --no-cache-dir --disable-pip-version-check "uv>=0.13"
ENV UV_PROJECT_ENVIRONMENT=/opt/leasekeeper \
    UV_PYTHON=/usr/local/bin/python3 \
    UV_PYTHON_DOWNLOADS=never \
    UV_LINK_MODE=copy \
    UV_COMPILE_BYTECODE=1 \
    UV_NO_CACHE=1
WORKDIR /src
# What others wrote changes less often than what we write: a layer of its own.
COPY pyproject.toml uv.lock README.md LICENSE ./
COPY clients/python/pyproject.toml clients/python/README.md clients/python/
RUN uv sync --frozen --no-dev --no-install-workspace
COPY clients/python/leasekeeper_client clients/python/leasekeeper_client
COPY leasekeeper leasekeeper
RUN uv sync --frozen --no-dev --no-editable

FROM python:${PYTHON}-slim
RUN useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin leasekeeper
COPY --from=builder /opt/leasekeeper /opt/leasekeeper
ENV PATH=/opt/leasekeeper/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
USER 10001
EXPOSE 7420
# SIGTERM drains: holders have five seconds to finish.
STOPSIGNAL SIGTERM
# A client like any other: it opens a session with the same LEASEKEEPER_TOKEN, and asks the store. With
# another --listen, set LEASEKEEPER_URL to match.
HEALTHCHECK --interval=15s --timeout=5s --start-period=5s --retries=3 \
    CMD ["leasekeeper", "ls", "--limit", "1"]
ENTRYPOINT ["leasekeeper"]
CMD ["serve", "--listen", "0.0.0.0:7420"]
