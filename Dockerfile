# An OpenAI-compatible speech server with its weights inside. docs/container.md says more.
#   docker build -t smalle .                            # small: preset voices, without PyTorch
#   docker build -t smalle --build-arg RUNTIME=torch .  # with cloning and word times
#   docker run --rm -p 127.0.0.1:8000:8000 smalle

ARG PYTHON=3.12
FROM python:${PYTHON}-slim-bookworm AS build
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY . .
ARG RUNTIME=lite
ARG TORCH_INDEX=""
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
RUN python -m venv /opt/smalle \
    && if [ "$RUNTIME" = lite ]; then \
        /opt/smalle/bin/pip install --no-cache-dir --constraint constraints.txt --requirement requirements-lite.txt \
        && /opt/smalle/bin/pip install --no-cache-dir --no-deps .; \
    else \
        /opt/smalle/bin/pip install --no-cache-dir --constraint constraints.txt \
            ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} ".[serve,read]"; \
    fi \
    && /opt/smalle/bin/pip uninstall --yes pip

FROM python:${PYTHON}-slim-bookworm
COPY --from=build /opt/smalle /opt/smalle
RUN useradd --create-home --uid 1000 smalle
USER 1000
WORKDIR /home/smalle
# a new volume for uploaded voices takes over the owner of this folder
RUN mkdir voices
ENV PATH=/opt/smalle/bin:$PATH HF_HUB_OFFLINE=1 PYTHONDONTWRITEBYTECODE=1
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
ENTRYPOINT ["smalle"]
CMD ["serve", "--host", "0.0.0.0", "--public"]
