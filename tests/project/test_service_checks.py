"""The checks of the services in examples/ find what is wrong with a server, a Dockerfile, or the rows of an engine."""

import http.server
import json
import socket
import threading

import numpy as np
import pyarrow as pa
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from examples import v2
from examples.batch.check import same_rows, with_one_bit_more
from examples.batch.features import sparse_features
from examples.containers.check import DOCKERFILE, check_rules, read_image
from runtime import ParityError, SAEError, SAESession
from runtime.serving.metrics import Metrics
from runtime.serving.service import Limits, Service, http_status

MAX_TOKENS = 1000


class Client:
    """A service in this process, as the checks call a server. `spoil` changes its answers."""

    def __init__(self, spoil=lambda found: found):
        self.registry = CollectorRegistry()
        self.spoil = spoil
        self.service = Service(
            SAESession(v2.ARTIFACT, "cpu"), Limits(MAX_TOKENS, 8 << 20), Metrics(self.registry).of("sae")
        )

    def __call__(self, inputs, outputs):
        try:
            return self.spoil(self.service.answer(inputs, outputs))
        except SAEError as error:
            raise v2.RefusedError(http_status(error), str(error)) from None


@pytest.fixture
def page():
    """A page of metrics in a server; call it with a function that returns its text, and get its address."""
    servers = []

    def serve(text):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(200)
                self.end_headers()
                self.wfile.write(text())

            do_POST = do_GET  # noqa: N815

            def log_message(self, *arguments):
                pass

        servers.append(http.server.HTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def larger(found, hook="hook_sae_recons"):
    return {name: array * np.float32(1.0001) if name == hook else array for name, array in found.items()}


def test_wrong_answers_are_found():
    v2.check_answers(Client(), "here")
    with pytest.raises(ParityError, match="hook_sae_recons"):
        v2.check_answers(Client(larger), "here")


def test_requests_that_should_be_refused_are_found():
    v2.check_refusals(Client(), "here", MAX_TOKENS, v2.JSON_REFUSALS)
    with pytest.raises(SystemExit, match="too many tokens: the server answered 413"):
        v2.check_refusals(Client(), "here", MAX_TOKENS, v2.Refusals(400, 400))
    with pytest.raises(SystemExit, match="another width: the server answered 400"):
        v2.check_refusals(Client(), "here", MAX_TOKENS, v2.Refusals(422, 413))
    with pytest.raises(SystemExit, match="too many tokens: the server answered it"):
        v2.check_refusals(Client(), "here", MAX_TOKENS - 1, v2.JSON_REFUSALS)


@pytest.mark.parametrize("metric", ["", "sae_requests_total", "sae_tokens_total", "sae_not_finite", "sae_l0_sum"])
def test_metrics_that_do_not_count_are_found(page, metric):
    client = Client()

    def text():
        lines = generate_latest(client.registry).decode().splitlines()
        return "\n".join(line for line in lines if not metric or not line.startswith(metric)).encode()

    def check():
        v2.check_metrics(page(text), client, MAX_TOKENS, v2.JSON_REFUSALS)

    if metric:
        with pytest.raises(SystemExit, match="the metrics changed by"):
            check()
    else:
        check()


def test_an_address_that_others_reach_is_found():
    with socket.socket() as here, socket.socket() as everywhere:
        here.bind(("127.0.0.1", 0))
        everywhere.bind(("0.0.0.0", 0))
        ports = [one.getsockname()[1] for one in (here, everywhere)]
        for one in (here, everywhere):
            one.listen()
        v2.check_listens_here_only(ports[:1])
        for wrong in (ports, ports[1:]):
            with pytest.raises(SystemExit, match="the server listens at"):
                v2.check_listens_here_only(wrong)
    with pytest.raises(SystemExit, match="the server listens at"):
        v2.check_listens_here_only(ports[:1])  # nothing does any more


def test_a_server_that_does_not_start_is_found(capsys):
    with pytest.raises(SystemExit, match="the server is not ready"), v2.running(["false"], "http://127.0.0.1:9/"):
        pass
    with (
        pytest.raises(SystemExit, match="not ready"),
        v2.running(["sh", "-c", "echo no such artifact; exit 1"], "http://127.0.0.1:9/"),
    ):
        pass
    assert "no such artifact" in capsys.readouterr().err


def test_json_with_nan_is_found(page):
    client = v2.JsonClient(page(lambda: json.dumps({"outputs": [{"data": [float("nan")]}]}).encode()))
    with pytest.raises(ValueError, match="NaN is not JSON"):
        client.post(b"{}")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("USER 10001:10001\n", "", "it runs as root"),
        ("USER 10001:10001", "USER root", "it runs as root"),
        ("ORT_DISABLE_TELEMETRY=1", "ORT_DISABLE_TELEMETRY=0", "it sends telemetry"),
        ("--requirement requirements.txt", "torch", "it installs PyTorch"),
        ('".[metrics]"', '".[metrics,export]"', "it installs PyTorch"),
        ("onnxruntime-gpu[cuda,cudnn]", "onnxruntime", "it has the other ONNX Runtime"),
    ],
)
def test_dockerfiles_that_break_a_rule_are_found(old, new, message):
    text = DOCKERFILE.read_text()
    for target in ("cpu", "cuda"):
        check_rules(target, read_image(text, target))
    assert old in text
    with pytest.raises(SystemExit, match=message):
        for target in ("cpu", "cuda"):
            check_rules(target, read_image(text.replace(old, new), target))


def test_rows_that_differ_are_found():
    rows = pa.table({
        "token": pa.array([0, 1]), "indices": pa.array([[3], [1, 2]], pa.list_(pa.int32())),
        "values": pa.array([[0.5], [1.5, 0.25]], pa.list_(pa.float32())), "l0": pa.array([1, 2], pa.int32()),
    })  # fmt: skip
    assert same_rows(rows, rows)
    assert not same_rows(with_one_bit_more(rows), rows)
    assert not same_rows(rows.slice(1), rows)
    assert not same_rows(rows.set_column(3, "l0", pa.array([1, 3], pa.int32())), rows)


@pytest.mark.parametrize("rows", [[[0.0] * 383, [0.0] * 385], [[0.0] * 384, None]])
def test_rows_of_another_width_are_refused(rows):
    table = pa.table({"activation": pa.array(rows, pa.list_(pa.float32()))})
    artifact = str(v2.ARTIFACT)
    with pytest.raises(ValueError, match="Every row of activation must have 384 numbers"):
        sparse_features(table, artifact, 4)
    assert sparse_features(table.slice(0, 0), artifact, 4).num_rows == 0
