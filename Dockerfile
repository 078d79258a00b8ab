# docker build -t unetdiff .                                                                            on a CPU
# docker build -t unetdiff:cuda --build-arg BASE=nvidia/cuda:12.8.1-base-ubuntu24.04 .                  on a GPU
# docker run --rm -v "$PWD/runs:/unetdiff/runs" unetdiff make quickstart
# docker run --rm --gpus all --shm-size 8g -v "$PWD:/data" unetdiff:cuda unetdiff train segmentation /data/my.yaml

# torch's wheels bring CUDA's libraries: a GPU needs an image that the container toolkit gives the driver to.
ARG BASE=debian:bookworm-slim
FROM ${BASE}

RUN apt-get update \
    && apt-get install -y --no-install-recommends make git python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /unetdiff
ENV PATH=/unetdiff/.venv/bin:$PATH PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1

# the requirements first: a change of the code does not install them again
COPY pyproject.toml setup.py constraints.txt Makefile README.md LICENSE ./
COPY unetdiff/__init__.py unetdiff/__init__.py
RUN mkdir -p configs && python3 -m venv .venv \
    && .venv/bin/python -m pip install -c constraints.txt -e '.[dev]' && touch .venv/.installed

COPY . .
RUN touch .venv/.installed && unetdiff --version

CMD ["unetdiff", "--help"]
