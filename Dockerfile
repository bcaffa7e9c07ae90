# syntax=docker/dockerfile:1
# One image for Affinery's own processes (worker, migration), its Ray nodes and its MLflow server, so that all of them run
# the same locked versions.

FROM python:3.12.13-slim-bookworm AS build
WORKDIR /src
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 UV_LINK_MODE=copy UV_COMPILE_BYTECODE=1

# The dependencies first: they change with the lock only, and are by far the larger part.
COPY requirements.lock pyproject.toml ./
RUN pip install "$(grep '^uv==' requirements.lock)" \
    && python -m venv --without-pip /opt/affinery \
    && uv pip compile pyproject.toml --extra team --constraint requirements.lock --quiet -o /tmp/team.lock \
    && uv pip install --no-cache --python /opt/affinery/bin/python --requirement /tmp/team.lock

COPY LICENSE README.md ./
COPY affinery affinery
COPY registry registry
COPY trainers trainers
COPY orchestration orchestration
COPY affinery_app affinery_app
COPY migrations migrations
RUN uv build --wheel --out-dir /tmp/wheels \
    && uv pip install --no-cache --no-deps --python /opt/affinery/bin/python /tmp/wheels/*.whl


FROM python:3.12.13-slim-bookworm
LABEL org.opencontainers.image.title="Affinery" org.opencontainers.image.licenses="Apache-2.0"

# The workspace is there and ours before a volume is mounted over it: a fresh named volume takes over its owner.
RUN groupadd --gid 10001 affinery \
    && useradd --uid 10001 --gid affinery --create-home affinery \
    && install --directory --owner affinery --group affinery /var/lib/affinery

COPY --from=build /opt/affinery /opt/affinery
COPY docker/entrypoint.sh docker/create_buckets.py /usr/local/lib/affinery/
COPY docker/affinery /usr/local/lib/affinery/bin/

ENV PATH=/usr/local/lib/affinery/bin:/opt/affinery/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    AFFINERY_WORKSPACE=/var/lib/affinery \
    MLFLOW_DISABLE_TELEMETRY=true \
    RAY_USAGE_STATS_ENABLED=0 \
    RAY_CHDIR_TO_TRIAL_DIR=0
USER affinery
WORKDIR /var/lib/affinery
ENTRYPOINT ["/usr/local/lib/affinery/entrypoint.sh"]
CMD ["affinery", "--help"]
