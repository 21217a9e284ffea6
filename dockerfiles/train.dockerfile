# Training: `docker run --rm -v training:/work IMAGE data=digits training.epochs=3`. What follows IMAGE are overrides, as
# for `invoke train`; train.py says what variables ask for beside, docs/containers.md shows it. No keys, no root, and
# nothing that it writes outside of /work and /tmp.
ARG BASE_IMAGE=python:3.12-slim

FROM ${BASE_IMAGE} AS packages
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
# Without a pip of its own, which nobody needs there: that of the base installs into it.
RUN python -m venv --without-pip /opt/mlops
WORKDIR /src
COPY requirements/train.txt requirements/train.txt
RUN python -m pip --python /opt/mlops/bin/python install --require-hashes -r requirements/train.txt

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
# Beside the packages and not among them: a change of the code must not send torch and CUDA again.
RUN python -m pip wheel --no-deps --no-build-isolation --wheel-dir wheel . \
    && python -m pip --python /opt/mlops/bin/python install --no-deps --no-index --target /opt/code wheel/*.whl

FROM ${BASE_IMAGE}
# Libraries look for settings of the user, who has no home; and torch for the driver of a GPU, which GKE and Vertex AI
# mount in a place where nothing looks by itself.
ENV PATH=/opt/code/bin:/opt/mlops/bin:$PATH PYTHONPATH=/opt/code PYTHONDONTWRITEBYTECODE=1 \
    ORT_DISABLE_TELEMETRY=1 HOME=/tmp USER=mlops LD_LIBRARY_PATH=/usr/local/nvidia/lib64
# In the order in which they change: versions seldom, the code often, data with each version.
COPY --from=packages /opt/mlops /opt/mlops
COPY --from=code /opt/code /opt/code
COPY dockerfiles/train.py /opt/train.py
# Which data, and in which bucket: no images, no key.
COPY .dvcignore data.dvc /opt/project/
COPY .dvc/config /opt/project/.dvc/config
# Which commit checkpoints name, as there is no git in here. Last, for it is another one with each build; and before a
# RUN, without which Podman would take ENV and LABEL from its cache, of another commit (buildah's issue 5501).
ARG COMMIT=""
RUN install --directory --owner 65534 --group 65534 /work
ENV MLOPS_COMMIT=${COMMIT}
LABEL org.opencontainers.image.revision=${COMMIT}
WORKDIR /work
USER 65534:65534
ENTRYPOINT ["python", "/opt/train.py"]
