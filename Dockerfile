# The same set-up as on a bare machine. Written against `make setup`; no Docker engine has built it in CI yet.
#   docker build -t lawm-policy . && docker run --rm -v "$PWD/runs:/lawm-policy/runs" lawm-policy
# With a GPU: docker build --build-arg TORCH=cuda, and docker run --gpus all.
FROM python:3.11-slim

RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends make git && rm -rf /var/lib/apt/lists/*
WORKDIR /lawm-policy
ARG TORCH=cpu
ENV TORCH=${TORCH} PIP_NO_CACHE_DIR=1 PATH=/lawm-policy/.venv/bin:$PATH

# The environment changes less often than the code: a layer of its own.
COPY pyproject.toml requirements.lock Makefile README.md LICENSE ./
COPY tools tools
COPY lawm_policy/__init__.py lawm_policy/__init__.py
COPY configs configs
RUN make setup

COPY . .
CMD ["lawm", "quickstart"]
