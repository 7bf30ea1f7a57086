"""An artifact as a model of MLServer: all hooks, edits of features, or the features that are on, by the V2 protocol."""

import asyncio
import logging

import grpc
from mlserver import MLModel
from mlserver.errors import MLServerError
from mlserver.grpc.utils import STATUS_CODE_MAPPING
from mlserver.types import InferenceRequest, InferenceResponse, MetadataTensor, Parameters, ResponseOutput

from runtime import SAESession
from runtime.serving.metrics import Metrics
from runtime.serving.protocol import DATATYPES, array_of, dimensions
from runtime.serving.service import FAILED, TOO_LARGE, Limits, Service, http_status

METRICS = Metrics()
STATUS_CODE_MAPPING[TOO_LARGE] = grpc.StatusCode.RESOURCE_EXHAUSTED  # MLServer's own table does not have it

log = logging.getLogger("mlserver")


class SAEModel(MLModel):
    """The model. `parameters.uri` is the folder of the artifact.

    `parameters.extra` may have `session`, options of `runtime.SAESession`, and `limits`, those of
    `runtime.serving.service.Limits`.
    """

    async def load(self) -> bool:
        """Open the artifact and load the graphs that most requests need."""
        extra = self.settings.parameters.extra or {}
        session = SAESession(self.settings.parameters.uri, **extra.get("session", {}))
        self._service = Service(session, Limits(**extra.get("limits", {})), METRICS.of(self.name))
        self._service.warm_up()
        self.inputs, self.outputs = (
            [MetadataTensor(name=spec.name, datatype=DATATYPES[spec.dtype], shape=dimensions(spec)) for spec in specs]
            for specs in (self._service.inputs, self._service.outputs)
        )
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Answer a request. The event loop goes on meanwhile."""
        try:
            inputs = {
                tensor.name: array_of(tensor.name, tensor.datatype, tensor.shape, tensor.data.root)
                for tensor in payload.inputs
            }
            names = [output.name for output in payload.outputs or ()]
            found = await asyncio.to_thread(self._service.answer, inputs, names)
        except Exception as error:
            status = http_status(error)
            if status == FAILED:
                log.exception("A request failed")
                raise MLServerError("The request failed; the server's log has the reason.", status) from None
            raise MLServerError(str(error), status) from None
        return InferenceResponse(
            model_name=self.name,
            outputs=[
                ResponseOutput(
                    name=name,
                    datatype=DATATYPES[str(array.dtype)],
                    shape=list(array.shape),
                    data=array.ravel().tolist(),
                    parameters=Parameters(content_type="np"),
                )
                for name, array in found.items()
            ],
        )

    async def unload(self) -> bool:
        """Close the artifact."""
        self._service.session.close()
        return True
