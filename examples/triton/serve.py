"""Serves an artifact by the Triton of nvidia-pytriton, with its Python backend.

    python examples/triton/serve.py ARTIFACT REPOSITORY

For another Triton, copy the model repository that this writes, and install `saeexport[cpu]` in its Python.
"""

import argparse
import importlib.util
import os
import shutil
import sys
import sysconfig
from pathlib import Path

from runtime import SAEError, SAESession
from runtime.serving.service import Limits, Service
from runtime.serving.triton import config_text

PACKAGES = Path(importlib.util.find_spec("pytriton").origin).parents[1]
SERVER = PACKAGES / "pytriton" / "tritonserver"


def main() -> None:
    """Become the server."""
    parser = argparse.ArgumentParser(description="Serve an artifact by Triton's Python backend.")
    parser.add_argument("artifact", help="folder of the artifact")
    parser.add_argument("repository", help="folder to write the model repository to")
    parser.add_argument("--name", default="sae", help="name of the model (default: %(default)s)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    for what, port in (("http", 8000), ("grpc", 8001), ("metrics", 8002)):
        parser.add_argument(f"--{what}-port", type=int, default=port, metavar="PORT", help=f"(default: {port})")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: %(default)s)")
    parser.add_argument("--max-tokens", type=int, default=Limits.tokens, help="of a request (default: %(default)s)")
    parser.add_argument(
        "--max-bytes",
        type=int,
        default=32 << 20,
        help="of an answer (default: 32 MiB)",
    )
    options = parser.parse_args()
    try:
        write_model(Path(options.repository) / options.name, options)
    except SAEError as error:
        sys.exit(f"error: {error}")
    ports = {"http": options.http_port, "grpc": options.grpc_port, "metrics": options.metrics_port}
    command = server_command(options.repository, options.host, ports)
    os.execve(command[0], command, server_environment())


def server_command(repository: str | os.PathLike[str], host: str, ports: dict[str, int]) -> list[str]:
    """Return the command of the wheel's Triton, which has the stub of this Python in another place than it looks."""
    program, stub = SERVER / "bin" / "tritonserver", SERVER / "backends" / "python" / "triton_python_backend_stub"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    shutil.copyfile(SERVER / "python_backend_stubs" / version / stub.name, stub)
    program.chmod(0o755)
    stub.chmod(0o755)
    addresses = [f"--{what}-address={host}" for what in ports] + [
        f"--{what}-port={port}" for what, port in ports.items()
    ]
    return [str(program), f"--model-repository={repository}", f"--backend-directory={SERVER / 'backends'}",
            "--disable-auto-complete-config", "--allow-gpu-metrics=false", *addresses]  # fmt: skip


def server_environment() -> dict[str, str]:
    """Return the environment of the wheel's Triton."""
    libraries = [PACKAGES / "nvidia_pytriton.libs", sysconfig.get_config_var("LIBDIR")]
    return {
        **os.environ,
        "LD_LIBRARY_PATH": ":".join(map(str, libraries)),
        "PYTHONPATH": ":".join(path for path in sys.path[1:] if os.path.isdir(path)),  # without the folder of this file
        "ORT_DISABLE_TELEMETRY": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def write_model(folder: Path, options: argparse.Namespace) -> None:
    """Write the model of an artifact into a repository."""
    with SAESession(options.artifact, options.device) as session:
        service = Service(session, Limits(options.max_tokens, options.max_bytes))
        inputs, outputs = service.inputs, service.outputs
    config = config_text(
        options.name, "python", inputs, outputs, "KIND_CPU",
        optional=[spec.name for spec in inputs if spec.name != "input"],
        parameters={
            "artifact": os.path.abspath(options.artifact),
            "device": options.device,
            "max_tokens": str(options.max_tokens),
            "max_bytes": str(options.max_bytes),
        },
    )  # fmt: skip
    (folder / "1").mkdir(parents=True, exist_ok=True)
    (folder / "config.pbtxt").write_text(config, "utf-8")
    shutil.copy(Path(__file__).with_name("model.py"), folder / "1" / "model.py")


if __name__ == "__main__":
    main()
