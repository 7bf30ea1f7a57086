"""An artifact as a model of Triton's Python backend: all hooks, edits of features, or the features that are on."""

import json
import os
import sys

# The backend's own interpreter does not read it. The backend needs a NumPy before 2: with a later one it sends no data.
sys.path[:0] = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))

import triton_python_backend_utils as pb_utils

from runtime import SAESession
from runtime.serving.service import FAILED, Limits, Observation, Service, http_status


class TritonPythonModel:
    """The model. The parameters of its configuration name the artifact, the device and the limits."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the artifact and load the graphs that most requests need."""
        config = json.loads(args["model_config"])
        parameters = {name: value["string_value"] for name, value in config["parameters"].items()}
        session = SAESession(parameters["artifact"], parameters["device"])
        limits = Limits(int(parameters["max_tokens"]), int(parameters["max_bytes"]))
        self._metrics = Metrics(args["model_name"])
        self._service = Service(session, limits, self._metrics.add)
        self._service.warm_up()

    def execute(self, requests: list) -> list:
        """Answer requests one by one."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: object) -> object:
        try:
            inputs = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
            found = self._service.answer(inputs, self._wanted(request, inputs))
        except Exception as error:
            if http_status(error) == FAILED:
                pb_utils.Logger.log_error(f"A request failed: {error!r}")
                return _refusal("The request failed; the server's log has the reason.", pb_utils.TritonError.INTERNAL)
            return _refusal(str(error), pb_utils.TritonError.INVALID_ARG)
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in found.items()])

    def _wanted(self, request: object, inputs: dict) -> list[str]:
        """Return the outputs of a request. Triton asks for all of them if the client names none."""
        names = list(request.requested_output_names())
        return [] if len(names) == len(self._service.outputs) and "k" not in inputs else names

    def finalize(self) -> None:
        """Close the artifact."""
        self._service.session.close()


COUNTERS = {
    "sae_requests_total": "Requests by status code.",
    "sae_request_seconds_sum": "Seconds of all requests.",
    "sae_request_seconds_count": "Requests that took them.",
    "sae_tokens_total": "Tokens answered.",
    "sae_not_finite_tokens_total": "Tokens with NaN or infinity in the input.",
    "sae_l0_sum": "Features that are on, over all tokens.",
    "sae_l0_count": "Tokens whose features were counted.",
}


class Metrics:
    """The metrics of `runtime.serving.metrics`, of latency and L0 the sum and the count. Triton has no others.

    Triton counts a request that the model refused as a success (`nv_inference_request_success`).
    """

    def __init__(self, model: str) -> None:
        self._model, self._metrics = model, {}
        self._families = {
            name: pb_utils.MetricFamily(name=name, description=text, kind=pb_utils.MetricFamily.COUNTER)
            for name, text in COUNTERS.items()
        }
        for name in COUNTERS:
            self._add(name, 0, **({"code": "200"} if name == "sae_requests_total" else {}))

    def add(self, observation: Observation) -> None:
        """Count a request."""
        self._add("sae_requests_total", 1, code=str(observation.status))
        self._add("sae_request_seconds_sum", observation.seconds)
        self._add("sae_request_seconds_count", 1)
        self._add("sae_tokens_total", observation.tokens)
        self._add("sae_not_finite_tokens_total", observation.not_finite)
        if observation.l0 is not None:
            self._add("sae_l0_sum", int(observation.l0.sum()))
            self._add("sae_l0_count", len(observation.l0))

    def _add(self, name: str, value: float, **labels: str) -> None:
        key = (name, *labels.values())
        if key not in self._metrics:
            self._metrics[key] = self._families[name].Metric(labels={**labels, "model": self._model})
        self._metrics[key].increment(value)


def _refusal(text: str, code: object) -> object:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(text, code))
