"""Serves an artifact by KServe's Python server: V2 as JSON and binary tensors, and metrics for Prometheus.

python examples/kserve/serve.py ARTIFACT
"""

import argparse
import asyncio
import sys
from typing import Any

import numpy as np
from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer, model_server
from kserve.errors import InvalidInput
from kserve.logging import logger
from kserve.protocol.rest.server import RESTServer
from starlette.exceptions import HTTPException

from runtime import SAEError, SAESession
from runtime.serving.asgi import BodyLimit
from runtime.serving.metrics import Metrics
from runtime.serving.protocol import DATATYPES, NUMBERS, array_of, dimensions
from runtime.serving.service import FAILED, Limits, Service, http_status

METRICS = Metrics()


class SAEModel(Model):
    """An artifact as a model of KServe."""

    def __init__(self, name: str, session: SAESession, limits: Limits) -> None:
        super().__init__(name)
        self._service = Service(session, limits, METRICS.of(name))
        self.load()

    def load(self) -> bool:
        """Load the graphs that most requests need."""
        self._service.warm_up()
        self.ready = True
        return True

    async def get_input_types(self) -> list[dict[str, Any]]:
        """Return the inputs, for the metadata of the model."""
        return [_described(spec) for spec in self._service.inputs]

    async def get_output_types(self) -> list[dict[str, Any]]:
        """Return the outputs, for the metadata of the model."""
        return [_described(spec) for spec in self._service.outputs]

    async def predict(self, payload: InferRequest, headers: Any = None, response_headers: Any = None) -> InferResponse:
        """Answer a request. The event loop goes on meanwhile."""
        try:
            inputs = {tensor.name: _array(tensor) for tensor in payload.inputs}
            wanted = payload.request_outputs or []
            found = await asyncio.to_thread(self._service.answer, inputs, [output.name for output in wanted])
        except Exception as error:
            status = http_status(error)
            if status == FAILED:
                logger.exception("A request failed")
            text = "The request failed; the server's log has the reason." if status == FAILED else str(error)
            raise InvalidInput(text) if status == 400 else HTTPException(status, text) from None
        as_bytes = {output.name for output in wanted if (output.parameters or {}).get("binary_data")}
        outputs = []
        for name, array in found.items():
            outputs.append(InferOutput(name, list(array.shape), DATATYPES[str(array.dtype)]))
            outputs[-1].set_data_from_numpy(array, binary_data=name in as_bytes)
        return InferResponse(payload.id or "", self.name, outputs)


def _described(spec: Any) -> dict[str, Any]:
    return {"name": spec.name, "datatype": DATATYPES[spec.dtype], "shape": dimensions(spec)}


def _array(tensor: Any) -> np.ndarray:
    data = tensor.data
    if data is None and tensor.datatype in NUMBERS:  # a binary tensor
        data = tensor.as_numpy()
    return array_of(tensor.name, tensor.datatype, tensor.shape, data)


def main() -> None:
    """Serve until the process is stopped."""
    parser = argparse.ArgumentParser(
        description="Serve an artifact by KServe's server.", parents=[model_server.parser], conflict_handler="resolve"
    )
    parser.add_argument("artifact", help="folder of the artifact")
    parser.add_argument("--name", default="sae", help="name of the model (default: %(default)s)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="CPU threads per request (default: one per core)")
    parser.add_argument("--max-tokens", type=int, default=Limits.tokens, help="of a request (default: %(default)s)")
    parser.add_argument(
        "--max-bytes", type=int, default=32 << 20, help="of the body of a request, and of an answer (default: 32 MiB)"
    )
    options = parser.parse_args()
    try:
        session = SAESession(options.artifact, options.device, threads=options.threads)
        model = SAEModel(options.name, session, Limits(options.max_tokens, options.max_bytes))
    except SAEError as error:
        sys.exit(f"error: {error}")

    class Server(RESTServer):
        """KServe's server, which otherwise listens on every address, and takes requests of any size."""

        def __init__(self, *arguments: Any, **more: Any) -> None:
            super().__init__(*arguments, **more)
            self.config.host = options.host

        def create_application(self) -> None:
            super().create_application()
            model_server.app.add_middleware(BodyLimit, most_bytes=options.max_bytes)

    model_server.RESTServer = Server
    # KServe's gRPC cannot be restricted to an address.
    ModelServer(http_port=options.http_port, enable_grpc=False, workers=1).start([model])


if __name__ == "__main__":
    main()
