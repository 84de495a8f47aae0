# syntax=docker/dockerfile:1
# An image with the three programs, for NVIDIA GPUs and for CPUs:
#
#   docker build --build-arg COMMIT="$(git rev-parse --short=12 HEAD)" --tag balanceddpo .
#   docker run --rm --gpus all --volume "$PWD:/data" balanceddpo relabel --help
#
# torch brings its own CUDA libraries, so the base needs only what the driver's container tools expect.

FROM rust:1.95.0-bookworm AS build
# Versions of Debian's packages are those of the base's release.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends cmake nasm python3-venv \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
# The wheel runs with any build of torch; the one for CPUs is the smaller one to compile against.
ARG TORCH=cpu
ARG COMMIT=
RUN BALANCEDDPO_COMMIT="$COMMIT" make wheel TORCH="$TORCH"

FROM nvidia/cuda:13.0.1-base-ubuntu24.04
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates python3-venv \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /src/target/wheel/*.whl /tmp/
RUN python3 -m venv /opt/balanceddpo \
    && /opt/balanceddpo/bin/pip install --no-cache-dir /tmp/*.whl \
    && rm /tmp/*.whl
ENV PATH=/opt/balanceddpo/bin:$PATH
COPY --from=build /src/relabel/scorers/*.toml /usr/share/balanceddpo/
# The hub's cache lies in the folder that the user mounts, so that models stay when the container goes.
ENV HF_HOME=/data/.huggingface
WORKDIR /data
USER 1000:1000
CMD ["relabel", "--help"]
