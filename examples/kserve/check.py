"""Starts KServe's real server and checks it: answers, refusals, limits, metrics, and where it listens.

python -m examples.kserve.check
"""

import sys
from pathlib import Path

from examples.v2 import (
    ARTIFACT,
    JSON_REFUSALS,
    JsonClient,
    check_answers,
    check_bodies,
    check_listens_here_only,
    check_metrics,
    check_refusals,
    free_ports,
    running,
)

MAX_TOKENS, MAX_BYTES = 1000, 8 << 20


def main() -> None:
    """Run the check; an exit code other than 0 means that something is wrong."""
    (http,) = ports = free_ports(1)
    url = f"http://127.0.0.1:{http}"
    command = [
        sys.executable, Path(__file__).with_name("serve.py"), ARTIFACT, "--device", "cpu", "--http_port", http,
        "--max-tokens", MAX_TOKENS, "--max-bytes", MAX_BYTES,
    ]  # fmt: skip
    with running(command, f"{url}/v2/health/ready"):
        check_listens_here_only(ports)
        client = JsonClient(url)
        check_answers(client, "JSON")
        check_refusals(client, "JSON", MAX_TOKENS, JSON_REFUSALS)
        check_metrics(f"{url}/metrics", client, MAX_TOKENS, JSON_REFUSALS)
        check_bodies(client, MAX_BYTES)


if __name__ == "__main__":
    main()
