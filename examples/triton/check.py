"""Starts the real Triton with the Python backend and checks it; then reads the repository for its ONNX Runtime backend.

    python -m examples.triton.check

The wheel's Triton does not have the ONNX Runtime backend. It reads the configurations and misses the backend: that the
models load and run there is not verified.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import onnxruntime
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from examples.triton.serve import server_command, server_environment
from examples.v2 import (
    ARTIFACT,
    ROOT,
    GrpcClient,
    JsonClient,
    Refusals,
    check_answers,
    check_bodies,
    check_listens_here_only,
    check_metrics,
    check_refusals,
    done,
    fail,
    free_ports,
    running,
)
from runtime import read_artifact
from runtime.serving.triton import write_repository

MAX_TOKENS, MAX_BYTES = 1000, 8 << 20
TYPES = {"tensor(float)": "TYPE_FP32", "tensor(int64)": "TYPE_INT64"}
NO_BACKEND = "unable to find backend library for backend 'onnxruntime'"


def main() -> None:
    """Run the check; an exit code other than 0 means that something is wrong."""
    with tempfile.TemporaryDirectory() as folder:
        check_server(Path(folder) / "python")
        for artifact in (ROOT / "models" / "tiny", ARTIFACT):
            repository = Path(folder) / artifact.name
            graphs = list(read_artifact(artifact).manifest.graphs)
            models = write_repository(artifact, repository, graphs=graphs)
            for model in models:
                check_config(model)
            check_triton_reads(repository, models)
    print("UNVERIFIED: this Triton does not have the ONNX Runtime backend, so that those models were not run")


def check_server(repository: Path) -> None:
    """Check the model of the Python backend in a running server."""
    http, grpc, metrics = ports = free_ports(3)
    command = [
        sys.executable, Path(__file__).with_name("serve.py"), ARTIFACT, repository, "--device", "cpu",
        "--http-port", http, "--grpc-port", grpc, "--metrics-port", metrics,
        "--max-tokens", MAX_TOKENS, "--max-bytes", MAX_BYTES,
    ]  # fmt: skip
    with running(command, f"http://127.0.0.1:{http}/v2/health/ready"):
        check_listens_here_only(ports)
        by_json, by_grpc = JsonClient(f"http://127.0.0.1:{http}"), GrpcClient(f"127.0.0.1:{grpc}")
        refusals = Refusals("INVALID_ARGUMENT", "INVALID_ARGUMENT", own=True)
        for client, how, one in ((by_json, "JSON", Refusals(400, 400, own=True)), (by_grpc, "gRPC", refusals)):
            check_answers(client, how)
            check_refusals(client, how, MAX_TOKENS, one)
        counted = {  # Triton itself refuses another width
            'sae_requests_total{code="200",model="sae"}': 1,
            'sae_requests_total{code="413",model="sae"}': 1,
            'sae_request_seconds_count{model="sae"}': 2,
        }
        check_metrics(f"http://127.0.0.1:{metrics}/metrics", by_grpc, MAX_TOKENS, refusals, counted)
        check_bodies(by_json, None, range(400, 501))  # of what is not JSON, Triton says 500


def check_config(model: Path) -> None:
    """Compare the configuration of a model, as protobuf reads it, with what ONNX Runtime says about its graph."""
    text = (model / "config.pbtxt").read_text("utf-8")
    config = text_format.Parse(text, model_config_pb2.ModelConfig())
    graph = onnxruntime.InferenceSession(model / "1" / "model.onnx" / "model.onnx", providers=["CPUExecutionProvider"])
    first = 1 if config.max_batch_size else 0
    for described, found in ((config.input, graph.get_inputs()), (config.output, graph.get_outputs())):
        expected = [
            (tensor.name, TYPES[tensor.type], [-1 if isinstance(size, str) else size for size in tensor.shape][first:])
            for tensor in found
        ]
        batches = not first or all(isinstance(tensor.shape[0], str) for tensor in found)
        read = [
            (tensor.name, model_config_pb2.DataType.Name(tensor.data_type), list(tensor.dims)) for tensor in described
        ]
        if read != expected or not batches or config.name != model.name or config.backend != "onnxruntime":
            fail(f"{model.name} has {read}, the graph {expected}")
    try:
        text_format.Parse(text.replace("data_type", "data_tipe"), model_config_pb2.ModelConfig())
    except text_format.ParseError:
        return
    fail(f"{model.name}: protobuf reads a configuration with a misspelt field")


def check_triton_reads(repository: Path, models: list[Path]) -> None:
    """Check that the real server reads every configuration, and that it does not read one with a misspelt field."""
    log = log_of(repository)
    if unread := [model.name for model in models if f"failed to load '{model.name}'" not in log]:
        fail(f"Triton says nothing about {', '.join(unread)}:\n{log}")
    if log.count(NO_BACKEND) < len(models) or "failed to parse" in log.lower() or "error reading" in log.lower():
        fail(f"Triton finds more than the backend missing:\n{log}")
    config = models[0] / "config.pbtxt"
    config.write_text(config.read_text().replace("data_type", "data_tipe"))
    if "data_tipe" not in log_of(repository):
        fail("Triton reads a configuration with a misspelt field")
    done(
        f"{repository.name}: protobuf and Triton read the configurations of {len(models)} graphs, which fit the graphs"
    )


def log_of(repository: Path) -> str:
    """Return what the server prints before it gives up on a repository."""
    ports = dict(zip(("http", "grpc", "metrics"), free_ports(3), strict=True))
    ran = subprocess.run(
        server_command(repository, "127.0.0.1", ports), env=server_environment(), timeout=60,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    if not ran.returncode:
        fail(f"Triton serves {repository}, so that this check is out of date")
    return ran.stdout


if __name__ == "__main__":
    main()
