"""Serves an artifact by MLServer: V2 as JSON and gRPC, and metrics for Prometheus.

python examples/mlserver/serve.py ARTIFACT
"""

import argparse
import asyncio
import sys

from mlserver import MLServer, ModelSettings, Settings
from mlserver.settings import ModelParameters
from sae_model import SAEModel

from runtime import SAEError, SAESession
from runtime.serving.asgi import BodyLimit
from runtime.serving.service import Limits


class Server(MLServer):
    """MLServer with a limit on the size of JSON requests, which it does not have itself."""

    def __init__(self, settings: Settings, most_bytes: int) -> None:
        super().__init__(settings)
        self._rest_server._app.add_middleware(BodyLimit, most_bytes=most_bytes)


def main() -> None:
    """Serve until the process is stopped."""
    parser = argparse.ArgumentParser(description="Serve an artifact by MLServer.")
    parser.add_argument("artifact", help="folder of the artifact")
    parser.add_argument("--name", default="sae", help="name of the model (default: %(default)s)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    for what, port in (("http", 8080), ("grpc", 8081), ("metrics", 8082)):
        parser.add_argument(f"--{what}-port", type=int, default=port, metavar="PORT", help=f"(default: {port})")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="CPU threads per request (default: one per core)")
    parser.add_argument("--max-tokens", type=int, default=Limits.tokens, help="of a request (default: %(default)s)")
    parser.add_argument(
        "--max-bytes", type=int, default=32 << 20, help="of the body of a request, and of an answer (default: 32 MiB)"
    )
    options = parser.parse_args()
    try:
        SAESession(options.artifact, options.device, threads=options.threads).close()
        Limits(options.max_tokens, options.max_bytes)
    except SAEError as error:  # MLServer would log it and exit with 0
        sys.exit(f"error: {error}")
    settings = Settings(
        host=options.host, http_port=options.http_port, grpc_port=options.grpc_port, metrics_port=options.metrics_port,
        grpc_max_message_length=options.max_bytes,
        parallel_workers=0,  # ONNX Runtime uses all cores from one process, and the metrics are those of one process
        debug=False,
    )  # fmt: skip
    model = ModelSettings(
        name=options.name,
        implementation=SAEModel,
        parameters=ModelParameters(
            uri=options.artifact,
            extra={
                "session": {"device": options.device, "threads": options.threads},
                "limits": {"tokens": options.max_tokens, "output_bytes": options.max_bytes},
            },
        ),
    )

    async def serve() -> None:  # the server takes the signals of the event loop in which it is made
        await Server(settings, options.max_bytes).start([model])

    asyncio.run(serve())


if __name__ == "__main__":
    main()
