# The service: `docker run --rm -p 8000:8000 -v "$PWD/models/latest:/srv/models/latest:ro" IMAGE`. No torch, no keys, no
# root, and nothing that it writes outside of /tmp. What else may follow IMAGE: `mlops serve --help`, docs/containers.md.
ARG BASE_IMAGE=python:3.12-slim

FROM ${BASE_IMAGE} AS packages
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
# For `strip` alone: no version of it comes into the image.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends binutils && rm -rf /var/lib/apt/lists/*
# Without a pip of its own, which nobody needs there: that of the base installs into it.
RUN python -m venv --without-pip /opt/mlops
WORKDIR /src
COPY requirements/serve.txt requirements/serve.txt
# A fifth of what is installed is there for others: the packages' tests, the sources and symbols of what is compiled,
# onnxruntime a second time (for programs in C), and its tools, which need packages that are not here.
RUN python -m pip --python /opt/mlops/bin/python install --require-hashes -r requirements/serve.txt \
    && find /opt/mlops/lib -path '*/onnxruntime/*' \
        \( -name 'libonnxruntime.so.*' -o -name quantization -o -name tools -o -name transformers \) -prune -exec rm -r {} + \
    && find /opt/mlops/lib -type d -name tests -prune -exec rm -r {} + \
    && find /opt/mlops/lib -type f \( -name '*.c' -o -name '*.cpp' -o -name '*.h' -o -name '*.py[xd]' \) -delete \
    && find /opt/mlops/lib -type f -name '*.so' -not -path '*.libs/*' -exec strip --strip-unneeded {} +

FROM packages AS code
# What builds the package, with its hashes too: they stand among those of the tools for development.
COPY requirements/dev.txt requirements/dev.txt
RUN for name in hatchling packaging pathspec pluggy tomlkit trove-classifiers; do \
        sed -n '/^'"$name"'==/,/[^\\]$/p' requirements/dev.txt; \
    done > build.txt \
    && python -m pip install --require-hashes -r build.txt
COPY pyproject.toml README.md LICENSE ./
COPY configshydra configshydra
COPY src src
# Beside the packages and not among them: a change of the code is a layer of 5 MB.
RUN python -m pip wheel --no-deps --no-build-isolation --wheel-dir wheel . \
    && python -m pip --python /opt/mlops/bin/python install --no-deps --no-index --target /opt/code wheel/*.whl
# Nothing; or, with `--build-arg MODEL=model.onnx`, that file of the context: what is served when nothing else is named.
ARG MODEL=LICENSE
WORKDIR /model
COPY ${MODEL} ./
RUN rm -f LICENSE

FROM ${BASE_IMAGE}
# onnxruntime, from 1.29 on, would report to its makers what it runs, and warn where it can keep no identifier for that.
ENV PATH=/opt/code/bin:/opt/mlops/bin:$PATH PYTHONPATH=/opt/code PYTHONDONTWRITEBYTECODE=1 \
    ORT_DISABLE_TELEMETRY=1 HOME=/tmp
# In the order in which they change: versions seldom, the code often, a model with each training.
COPY --from=packages /opt/mlops /opt/mlops
COPY --from=code /opt/code /opt/code
COPY --from=code /model /srv/models/latest
# Last, for it is another one with each build; and before a RUN, without which Podman would take the label from its
# cache, of another commit (buildah's issue 5501).
ARG COMMIT=""
RUN :
LABEL org.opencontainers.image.revision=${COMMIT}
WORKDIR /srv
USER 65534:65534
EXPOSE 8000 8001
# Not only that it lives: who asks Docker (`depends_on`, Swarm) wants to know whether it answers. Of another --port it
# knows nothing; compose.yaml and Kubernetes have checks of their own.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health/ready', timeout=3)"]
# What is said again after IMAGE takes the place of this. 127.0.0.1 is only the container itself; and it sees all
# processors of its machine, whatever share it has: there are more containers, not more workers.
ENTRYPOINT ["mlops", "serve", "--host=0.0.0.0", "--workers=1"]
# The administration port asks for no key: it is open where nothing is said, and with a model only when told so.
CMD ["--admin-host=0.0.0.0"]
