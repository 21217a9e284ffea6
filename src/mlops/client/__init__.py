"""A client of `mlops serve`: pictures or features in, classes out. On urllib3 alone: no torch, no numpy."""

from mlops.client.answers import ClientError, Model, Prediction, Refused, Served, ServerError, UnreachableError
from mlops.client.client import Client

__all__ = [
    "Client",
    "ClientError",
    "Model",
    "Prediction",
    "Refused",
    "Served",
    "ServerError",
    "UnreachableError",
]
