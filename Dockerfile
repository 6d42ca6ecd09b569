# The one image: CPU by default; the result is the same, byte for byte, with or without a GPU.
#
#   docker build -t adapter-merge .
#   docker build -t adapter-merge:cuda --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 .
#
# Build arguments
#   PYTHON                     the base; a release pins it: docker.io/library/python:3.11-slim-bookworm@sha256:...
#   TORCH_INDEX                where torch comes from: its CPU builds, or its CUDA builds (several gigabytes more)
#   VERSION, REVISION, SOURCE  for the labels
#
# It weighs about 0.3 GB to pull and 0.8 GB over its base unpacked: torch's CPU library is two thirds of that. With CUDA
# it is several GB either way (pip unpacks 5.8 GB of torch and its libraries): cuBLAS, cuDNN, NCCL and the kernels of
# every GPU that torch knows come with it. A release has both; the action takes this one where there is a GPU.
ARG PYTHON=docker.io/library/python:3.11-slim-bookworm

FROM ${PYTHON} AS python
ENV LANG=C.UTF-8 PATH=/opt/adapter-merge/bin:$PATH

FROM python AS dependencies
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore PIP_PYTHON=/opt/adapter-merge/bin/python
WORKDIR /build
COPY pyproject.toml constraints.txt ./
# torch first and alone: any range would let pip take another build of it. Nothing else comes from torch's index.
# pip itself stays outside of what is shipped, and so does compiled Python, for now.
RUN python -m venv --without-pip /opt/adapter-merge \
 && pip install --no-compile --no-deps --extra-index-url "$TORCH_INDEX" -c constraints.txt torch
RUN python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" > wanted.txt \
 && pip install --no-compile -c constraints.txt -r wanted.txt
# Leave out what no merge reads: C++ headers, cmake files and torch's test programs; the tests of others; and what
# bitsandbytes has for GPUs, where torch is a build that has none.
# The import at the end compiles what every merge imports: the root is read-only, so that each start would do it again.
# All of it compiled would be 200 MB. `kernels` must not be here: with it, transformers runs code that it fetches.
WORKDIR /opt/adapter-merge
RUN rm -rf lib/python3.*/site-packages/torch/include lib/python3.*/site-packages/torch/share lib/python3.*/site-packages/torch/test \
 && find lib/python3.*/site-packages/torch/bin -type f ! -name torch_shm_manager -delete \
 && { python -c "import sys, torch; sys.exit(torch.version.cuda is None)" \
      || find lib/python3.*/site-packages/bitsandbytes -name 'libbitsandbytes_*.so' ! -name '*_cpu.so' -delete; } \
 && find lib -type d -name tests -path '*/site-packages/*' ! -path '*/torch/*' -prune -exec rm -rf {} + \
 && python -c "import torch, peft, huggingface_hub.hf_api, starlette.applications, uvicorn; from transformers import AutoModel, AutoTokenizer" \
 && python -c "import importlib.util; assert importlib.util.find_spec('kernels') is None"

FROM dependencies AS product
WORKDIR /build
COPY LICENSE README.md ./
COPY bot bot
# The compiler of this stage is not shipped; Debian's own Python keeps its headers in a package beside it. The import shows
# that the inner loops were compiled: without them, merges and proofs take twice as long and more.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev \
 && { test -e "$(python -c "import sysconfig; print(sysconfig.get_path('include'))")/Python.h" \
      || apt-get install -y --no-install-recommends libpython3-dev; } \
 && pip install --compile --no-deps --root /product . \
 && PYTHONSAFEPATH=1 PYTHONPATH="$(dirname "$(find /product -path '*/site-packages/bot')")" python -c "import bot.numerics._exact, bot.checks.elementwise._rederive, bot.checks.elementwise._at_random"

# Two layers over the base: the dependencies, and our own code, which is all that a runner pulls for most releases.
FROM python
COPY --from=dependencies /opt/adapter-merge /opt/adapter-merge
COPY --from=product /product /
# Any uid, a read-only root: nothing is written but below /tmp, and below HF_HOME where that names a mounted folder.
# USER is a name for uids that /etc/passwd does not know; without it, torch cannot name its cache.
ENV ADAPTER_MERGE_IMAGE=1 \
    HOME=/tmp TMPDIR=/tmp USER=adapter-merge \
    HF_HUB_DISABLE_TELEMETRY=1 PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
ARG VERSION=0.0.0
ARG REVISION=unknown
ARG SOURCE=unknown
LABEL org.opencontainers.image.title="adapter-merge" \
      org.opencontainers.image.description="Merge a PEFT adapter exactly, prove the merge, publish it with the proof." \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.source="${SOURCE}" \
      com.nvidia.volumes.needed="nvidia_driver"
# No USER: a workflow's job container has to write the runner's files. The launcher passes the caller's uid.
WORKDIR /tmp
ENTRYPOINT ["adapter-merge"]
CMD ["--help"]
