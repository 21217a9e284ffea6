# A model that predicts: `docker run --rm -v "$PWD/pictures:/pictures:ro" IMAGE /pictures`. No torch, no network, no server.
# The context is the repository, with the model.onnx of `mlops export` at its root.
ARG BASE_IMAGE=python:3.12-slim

FROM ${BASE_IMAGE} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/mlops
WORKDIR /src
# In the order in which they change: versions seldom, the code often.
COPY requirements/serve.txt requirements/serve.txt
RUN /opt/mlops/bin/pip install --require-hashes -r requirements/serve.txt
COPY pyproject.toml README.md LICENSE ./
COPY configshydra configshydra
COPY src src
RUN /opt/mlops/bin/pip install --no-deps .

FROM ${BASE_IMAGE}
# onnxruntime, from 1.29 on, would report to its makers what it runs, and warn where it can keep no identifier for that.
ENV PATH=/opt/mlops/bin:$PATH PYTHONDONTWRITEBYTECODE=1 ORT_DISABLE_TELEMETRY=1
COPY --from=build /opt/mlops /opt/mlops
COPY model.onnx /model/model.onnx
WORKDIR /model
USER 65534:65534
ENTRYPOINT ["mlops", "predict", "/model/model.onnx"]
CMD ["--help"]
