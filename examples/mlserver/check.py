"""Starts the real MLServer and checks it: answers, refusals, limits, metrics, and where it listens.

python -m examples.mlserver.check
"""

import sys
from pathlib import Path

import numpy as np

from examples.v2 import (
    ARTIFACT,
    GRPC_REFUSALS,
    JSON_REFUSALS,
    GrpcClient,
    JsonClient,
    check_answers,
    check_bodies,
    check_listens_here_only,
    check_metrics,
    check_refusals,
    expect_refusal,
    free_ports,
    running,
)

MAX_TOKENS, MAX_BYTES = 1000, 8 << 20


def main() -> None:
    """Run the check; an exit code other than 0 means that something is wrong."""
    http, grpc, metrics = ports = free_ports(3)
    command = [
        sys.executable, Path(__file__).with_name("serve.py"), ARTIFACT, "--device", "cpu",
        "--http-port", http, "--grpc-port", grpc, "--metrics-port", metrics,
        "--max-tokens", MAX_TOKENS, "--max-bytes", MAX_BYTES,
    ]  # fmt: skip
    with running(command, f"http://127.0.0.1:{http}/v2/health/ready"):
        check_listens_here_only(ports)
        by_json, by_grpc = JsonClient(f"http://127.0.0.1:{http}"), GrpcClient(f"127.0.0.1:{grpc}")
        for client, how, refusals in ((by_json, "JSON", JSON_REFUSALS), (by_grpc, "gRPC", GRPC_REFUSALS)):
            check_answers(client, how)
            check_refusals(client, how, MAX_TOKENS, refusals)
            check_metrics(f"http://127.0.0.1:{metrics}/metrics", client, MAX_TOKENS, refusals)
        check_bodies(by_json, MAX_BYTES)
        message = np.zeros((MAX_BYTES // 4 // 384 + 1, 384), np.float32)
        expect_refusal(by_grpc, "a large message", {"input": message}, [], "RESOURCE_EXHAUSTED", "larger than max")


if __name__ == "__main__":
    main()
