"""What the checks of the servers share: requests by the V2 protocol, and what every server has to answer."""

import contextlib
import itertools
import json
import math
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from runtime import read_artifact, verify_outputs
from runtime.serving.protocol import DATATYPES, array_of

ROOT = Path(__file__).parents[1]
ARTIFACT = ROOT / "models" / "minilm-layer3"
GRAPHS = ("model", "steer", "features")
START_SECONDS, REQUEST_SECONDS = 60, 60
LOG_SHOWN = 3000
"""Characters of a server's log that are shown if a check fails."""


class RefusedError(Exception):
    """A server refused a request.

    Attributes:
        status: Status code of HTTP, or the name of gRPC's.
    """

    def __init__(self, status: int | str, text: str) -> None:
        super().__init__(f"{status}: {text}")
        self.status = status


class JsonClient:
    """Sends requests to a model as JSON."""

    def __init__(self, url: str, model: str = "sae") -> None:
        self.url = f"{url}/v2/models/{model}/infer"

    def __call__(self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> dict[str, np.ndarray]:
        """Return the outputs of a request. NaN is null in JSON, both ways.

        Raises:
            RefusedError: The server refused it.
        """
        tensors = [
            {"name": name, "datatype": DATATYPES[str(array.dtype)], "shape": array.shape,
             "data": [None if math.isnan(number) else number for number in array.ravel().tolist()]}
            for name, array in inputs.items()
        ]  # fmt: skip
        answer = self.post(json.dumps({"inputs": tensors, "outputs": [{"name": name} for name in outputs]}).encode())
        found = {
            tensor["name"]: array_of(tensor["name"], tensor["datatype"], tensor["shape"], tensor["data"])
            for tensor in answer["outputs"]
        }
        return {name: found[name] for name in outputs} if set(outputs) == set(found) else found  # in their order

    def post(self, body: bytes) -> Any:
        """Return the answer to a body.

        Raises:
            RefusedError: The server refused it.
        """
        request = urllib.request.Request(self.url, body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=REQUEST_SECONDS) as answer:
                return json.load(answer, parse_constant=_refuse_constant)
        except urllib.error.HTTPError as error:
            raise RefusedError(error.code, error.read().decode()) from None
        except (BrokenPipeError, ConnectionResetError, urllib.error.URLError) as error:
            raise RefusedError("closed", f"the server closed the connection: {error}") from None


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is not JSON; other languages cannot read it")


class GrpcClient:
    """Sends requests to a model by gRPC, with tritonclient."""

    def __init__(self, address: str, model: str = "sae") -> None:
        import tritonclient.grpc

        self._library, self._model = tritonclient.grpc, model
        self._client = tritonclient.grpc.InferenceServerClient(address)

    def __call__(self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> dict[str, np.ndarray]:
        """Return the outputs of a request.

        Raises:
            RefusedError: The server refused it.
        """
        library, tensors = self._library, []
        for name, array in inputs.items():
            tensors.append(library.InferInput(name, list(array.shape), DATATYPES[str(array.dtype)]))
            tensors[-1].set_data_from_numpy(array)
        wanted = [library.InferRequestedOutput(name) for name in outputs]
        try:
            answer = self._client.infer(self._model, tensors, outputs=wanted, client_timeout=REQUEST_SECONDS)
        except library.InferenceServerException as error:
            raise RefusedError(str(error.status()).removeprefix("StatusCode."), error.message()) from None
        return {name: answer.as_numpy(name) for name in outputs}


Client = JsonClient | GrpcClient


def golden_inputs() -> np.ndarray:
    """Return the inputs of the golden batch."""
    return load_file(ARTIFACT / "golden.safetensors")["hook_sae_input"]


def check_answers(client: Client, how: str, graphs: Sequence[str] = GRAPHS) -> None:
    """Judge the hooks, an intervention and the features of the golden batch by the rule of `runtime.verify`."""
    specs, seconds, requests = read_artifact(ARTIFACT).manifest.graphs, 0.0, 0

    def run(graph: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        nonlocal seconds, requests
        start = time.perf_counter()
        outputs = client(inputs, [tensor.name for tensor in specs[graph].outputs])
        seconds, requests = seconds + time.perf_counter() - start, requests + 1
        return outputs

    report = verify_outputs(ARTIFACT, run, graphs)
    report.raise_for_failures()
    done(f"{how}: {len(report.verdicts)} outputs of {', '.join(graphs)} are within their budgets "
         f"({requests} requests of {report.tokens} tokens, {seconds / requests:.2f} s each)")  # fmt: skip


@dataclass(frozen=True)
class Refusals:
    """How a server refuses requests.

    Attributes:
        wrong: Status of a request that is wrong.
        large: Status of one that is too large.
        own: Whether the server has checks of its own, with other messages.
    """

    wrong: int | str
    large: int | str
    own: bool = False


JSON_REFUSALS, GRPC_REFUSALS = Refusals(400, 413), Refusals("INVALID_ARGUMENT", "RESOURCE_EXHAUSTED")


def check_refusals(client: Client, how: str, max_tokens: int, refusals: Refusals) -> None:
    """Check that wrong requests are refused with the right status, and that the server goes on.

    Args:
        client: Sends the requests.
        how: Name of the protocol, to be printed.
        max_tokens: The largest number of tokens that the server takes.
        refusals: How they must be refused.
    """
    cfg = read_artifact(ARTIFACT).manifest.sae
    x, hook = golden_inputs()[:2], ["hook_sae_acts_post"]
    too_many = np.zeros((max_tokens + 1, cfg.d_in), np.float32)
    edits = {"feature_scale": np.zeros((1, 2), np.float32), "feature_shift": np.zeros((1, 2), np.float32)}
    wrong: list[tuple[str, dict[str, np.ndarray], list[str], str, str]] = [
        ("another width", {"input": x[:, 1:]}, hook, "wrong", "this SAE takes"),
        ("no token dimension left out", {"input": x[None, :, :1]}, hook, "wrong", "this SAE takes"),
        ("an output that there is not", {"input": x}, ["hook_sae_middle"], "wrong", "no output hook_sae_middle"),
        ("an input that there is not", {"input": x, "middle": x}, hook, "wrong", "no input middle"),
        ("k left out", {"input": x}, ["indices"], "wrong", "needs the input k"),
        ("k out of range", {"input": x, "k": np.array([cfg.d_sae + 1])}, ["indices"], "wrong", "k is 3073"),
        ("a feature twice", {"input": x, "feature_ids": np.array([5, 5]), **edits}, hook, "wrong", "2 times"),
        ("a feature that there is not", {"input": x, "feature_ids": np.array([5, 9999]), **edits}, hook, "wrong",
         "no feature 9999"),
        ("too many tokens", {"input": too_many}, ["l0"], "large", "tokens; this service takes"),
        ("a large answer", {"input": too_many[:-1], "k": np.array([cfg.d_sae])}, ["indices"], "large",
         "answer would have"),
    ]  # fmt: skip
    wrong[8][1]["k"] = np.array([1])
    for what, inputs, outputs, kind, text in wrong:
        is_own = refusals.own and kind == "wrong"
        expect_refusal(client, what, inputs, outputs, getattr(refusals, kind), "" if is_own else text)
    client({"input": x}, hook)
    done(f"{how}: {len(wrong)} wrong requests are refused with their status, and the next one is answered")


def expect_refusal(
    client: Client, what: str, inputs: Mapping[str, np.ndarray], outputs: Sequence[str], status: int | str, text: str
) -> None:
    """Check that a request is refused with a status and a text."""
    try:
        client(inputs, outputs)
    except RefusedError as error:
        if error.status != status or text not in str(error):
            fail(f"{what}: the server answered {error}; expected {status} with {text!r}")
    else:
        fail(f"{what}: the server answered it")


def check_bodies(client: JsonClient, max_bytes: int | None, statuses: range = range(400, 500)) -> None:
    """Check that bodies that are not requests, or are larger than `max_bytes`, are refused."""
    bodies = {
        "not JSON": b'{"inputs": [{"na',
        "not UTF-8": b"\xff\xfe",
        "not an object": b"3",
        "no inputs": b"{}",
        "text for numbers": b'{"inputs": [{"name": "input", "datatype": "FP32", "shape": [1, 2], "data": ["a", "b"]}]}',
        "a shape that does not fit": b'{"inputs": [{"name": "input", "datatype": "FP32", "shape": [9], "data": [1]}]}',
        "deep nesting": b"[" * 100_000,
    }
    if max_bytes is not None:
        bodies["too large"] = b" " * (max_bytes + 1)
    for what, body in bodies.items():
        try:
            client.post(body)
        except RefusedError as error:
            if not (error.status == 413 if what == "too large" else error.status in statuses):
                fail(f"a body that is {what}: the server answered {error}")
        else:
            fail(f"a body that is {what}: the server answered it")
    client({"input": golden_inputs()[:1]}, ["hook_sae_output"])
    done(f"JSON: {len(bodies)} bodies that are no requests or too large are refused")


COUNTED = {
    'sae_requests_total{code="200",model="sae"}': 1,
    'sae_requests_total{code="400",model="sae"}': 1,
    'sae_requests_total{code="413",model="sae"}': 1,
    'sae_request_seconds_count{model="sae"}': 3,
}
"""What `runtime.serving.metrics` counts of three requests: one is answered, one is wrong, and one is too large."""


def check_metrics(
    url: str, client: Client, max_tokens: int, refusals: Refusals, counted: Mapping[str, float] = COUNTED
) -> None:
    """Check that each metric changes by what a few requests amount to.

    Args:
        url: Page of the metrics.
        client: Sends the requests.
        max_tokens: The largest number of tokens that the server takes.
        refusals: How the server refuses requests.
        counted: By how much the metrics that count requests must change.
    """
    x = golden_inputs()[:7].copy()
    l0 = client({"input": x, "k": np.array([1])}, ["l0"])["l0"]
    before = scrape(url)
    x[3, 5] = np.nan
    client({"input": x}, ["hook_sae_acts_post"])
    expect_refusal(client, "another width", {"input": x[:, 1:]}, ["hook_sae_acts_post"], refusals.wrong, "")
    too_many = np.zeros((max_tokens + 1, x.shape[1]), np.float32)
    expect_refusal(client, "too many tokens", {"input": too_many}, ["hook_sae_acts_post"], refusals.large, "")
    after = scrape(url)
    expected = {
        **counted,
        'sae_tokens_total{model="sae"}': 7,
        'sae_not_finite_tokens_total{model="sae"}': 1,
        'sae_l0_count{model="sae"}': 6,
        'sae_l0_sum{model="sae"}': float(np.delete(l0, 3).sum()),
    }
    changed = {name: after.get(name, 0.0) - before.get(name, 0.0) for name in expected}
    if changed != expected:
        fail(f"the metrics changed by {changed}; expected {expected}")
    mean = after['sae_l0_sum{model="sae"}'] / after['sae_l0_count{model="sae"}']
    done(f"metrics: requests, tokens, latency, L0 (mean {mean:.1f}) and rows with NaN are counted")


def scrape(url: str) -> dict[str, float]:
    """Return the samples of a page of Prometheus, by name and labels."""
    with urllib.request.urlopen(url, timeout=REQUEST_SECONDS) as page:
        lines = [line for line in page.read().decode().splitlines() if line and not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def check_listens_here_only(ports: Sequence[int]) -> None:
    """Check that nothing listens at these ports on another address than 127.0.0.1. Linux only."""
    here, listening, found = f"{int.from_bytes(socket.inet_aton('127.0.0.1'), sys.byteorder):08X}", "0A", []
    mapped = f"0000000000000000FFFF0000{here}"  # the same address in a socket of IPv6
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            address, _, port = fields[1].partition(":")
            if fields[3] == listening and int(port, 16) in ports:
                found.append((int(port, 16), here if address == mapped else address))
    if sorted(found) != sorted((port, here) for port in ports):
        fail(f"the ports are {list(ports)}, and the server listens at {found}; 127.0.0.1 is {here}")
    done("it listens on 127.0.0.1 only")


def free_ports(n: int) -> list[int]:
    """Return numbers of ports that are free."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(n)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@contextlib.contextmanager
def running(
    command: Sequence[str | os.PathLike[str]], ready_url: str, environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server during the block. It must become ready, and end soon after SIGTERM; its log is shown otherwise."""
    start = time.perf_counter()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [*map(str, command)], cwd=ROOT, stdout=log, stderr=subprocess.STDOUT,
            env={**os.environ, "ORT_DISABLE_TELEMETRY": "1", **(environment or {})},
        )  # fmt: skip
        try:
            for attempt in itertools.count():
                with contextlib.suppress(OSError), urllib.request.urlopen(ready_url, timeout=5) as answer:
                    if answer.status == 200:
                        break
                if process.poll() is not None or time.perf_counter() - start > START_SECONDS:
                    fail(f"the server is not ready after {attempt} tries")
                time.sleep(0.2)
            done(f"the server is ready after {time.perf_counter() - start:.1f} s")
            yield process
            process.send_signal(signal.SIGTERM)
            process.wait(30)
            done("the server ends after SIGTERM")
        except BaseException:
            log.seek(0)
            print(log.read().decode(errors="replace")[-LOG_SHOWN:], file=sys.stderr)
            raise
        finally:
            process.kill()
            process.wait()


def done(text: str) -> None:
    """Print what was found to be right."""
    print(f"ok: {text}", flush=True)


def fail(text: str) -> None:
    """End the check.

    Raises:
        SystemExit: Always.
    """
    raise SystemExit(f"FAIL: {text}")
