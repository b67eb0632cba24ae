# With NVIDIA GPUs (the driver comes from the host, through the NVIDIA container toolkit; CUDA's libraries come with torch):
#   docker build -t dllm .
#   docker run --rm --gpus all --shm-size 16g -v /models:/models -v "$PWD/runs:/runs" dllm \
#       python rl.py config=configs/rl_trado.yaml model.pretrained_model=/models/TraDo-4B-Instruct experiment.output_dir=/runs
#   docker run --rm --gpus all -p 127.0.0.1:8000:8000 -v /models:/models dllm \
#       dllm-serve model=/models/TraDo-4B-Instruct host=0.0.0.0
# Code rewards need namespaces for their sandbox, which Docker's default profiles forbid: docs/rewards.md.
FROM python:3.11-slim-bookworm

# gcc and headers: triton compiles kernels at run time. bubblewrap, libseccomp2: the sandbox of code rewards.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends bubblewrap build-essential git libseccomp2 openssh-client \
    && rm -rf /var/lib/apt/lists/*

ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PYTHONUNBUFFERED=1

WORKDIR /opt/dllm
COPY requirements.txt requirements-extras.txt ./
RUN pip install -r requirements.txt \
    && DS_BUILD_OPS=0 pip install -c requirements-extras.txt setuptools ninja \
    && DS_BUILD_OPS=0 pip install --no-build-isolation -c requirements-extras.txt deepspeed pyseccomp
COPY . .
RUN pip install --no-deps --no-build-isolation -e . \
    && useradd --create-home --uid 1000 dllm \
    && chown -R dllm /opt/dllm
USER 1000
CMD ["dllm-env"]
