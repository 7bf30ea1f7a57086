"""Lints the Dockerfile, and checks what it says: by building the image where Docker is, or else by its instructions.

    python -m examples.containers.check

Without Docker, the packages are installed as in the image, and its command is run with its environment, user and
rights, from a folder that the user cannot write. That the image itself builds is then not verified.
"""

import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from examples.v2 import ARTIFACT, ROOT, JsonClient, check_answers, done, fail, free_ports, running

DOCKERFILE = Path(__file__).with_name("Dockerfile")
SYSTEM_PYTHON = Path("/usr/bin/python3")
HARDENED = ["--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"]


@dataclass
class Image:
    """What the instructions of a stage, and of those that it is based on, amount to."""

    environment: dict[str, str] = field(default_factory=dict)
    copied: list[tuple[str, str]] = field(default_factory=list)
    installs: list[str] = field(default_factory=list)
    user: str = "0"
    folder: str = "/"
    health: list[str] = field(default_factory=list)
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)


def main() -> None:
    """Run the check; an exit code other than 0 means that something is wrong."""
    check_lint()
    for target in ("cpu", "cuda"):
        check_rules(target, read_image(DOCKERFILE.read_text(), target))
    done("both targets run as a user, without telemetry, without PyTorch, with a health check")
    has_docker = shutil.which("docker") and not subprocess.run(["docker", "info"], capture_output=True).returncode
    with running_image() if has_docker else running_without_docker(read_image(DOCKERFILE.read_text(), "cpu")) as url:
        check_answers(JsonClient(url), "JSON")
    if not has_docker:
        print("UNVERIFIED: there is no Docker here, so that no image was built")


def check_lint() -> None:
    """Run hadolint, which must also find what is wrong with a worse file."""
    if errors := lint(DOCKERFILE.read_text()):
        fail(f"hadolint: {errors}")
    worse = DOCKERFILE.read_text().replace(":3.11-slim", "").replace('CMD ["--device", "cpu"]', "CMD --device cpu")
    if not all(rule in lint(worse) for rule in ("DL3006", "DL3025")):
        fail("hadolint does not find what is wrong with a worse file")
    done("hadolint finds nothing")


def lint(text: str) -> str:
    """Return what hadolint says about the text of a Dockerfile; an empty string if it is right."""
    hadolint = Path(sys.executable).with_name("hadolint")
    ran = subprocess.run([hadolint, "-"], input=text, capture_output=True, text=True)
    return ran.stdout + ran.stderr if ran.returncode else ""


def read_image(text: str, target: str) -> Image:
    """Return what the instructions for a target amount to."""
    logical = re.sub(r"\\\n", " ", re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE))
    stages: dict[str, Image] = {}
    image = Image()
    for line in filter(None, map(str.strip, logical.splitlines())):
        word, _, rest = line.partition(" ")
        if word == "FROM":
            base, _, name = rest.split()
            image = stages[name] = copy_of(stages[base]) if base in stages else Image()
        elif word == "ENV":
            image.environment |= dict(pair.split("=", 1) for pair in shlex.split(rest))
        elif word == "COPY":
            *sources, place = rest.split()
            image.copied += [(source, place) for source in sources if not source.startswith("--")]
            for source in sources:
                if source.startswith("--from="):
                    image.installs += stages[source.removeprefix("--from=")].installs
        elif word == "RUN":
            image.installs.append(rest)
        elif word == "USER":
            image.user = rest
        elif word == "WORKDIR":
            image.folder = rest
        elif word == "HEALTHCHECK":
            image.health = json.loads(rest[rest.index("[") :])
        elif word == "ENTRYPOINT":
            image.entrypoint = json.loads(rest)
        elif word == "CMD":
            image.command = json.loads(rest)
    return stages[target]


def copy_of(image: Image) -> Image:
    """Return an image with the same instructions so far."""
    return Image(**{name: value if isinstance(value, str) else value.copy() for name, value in vars(image).items()})


def check_rules(target: str, image: Image) -> None:
    """Check what an image must have."""
    wrong = {
        "it runs as root": image.user.split(":")[0] in ("0", "root"),
        "it sends telemetry": image.environment.get("ORT_DISABLE_TELEMETRY") != "1",
        "it has no health check": not image.health,
        "it has no command in the form of a list": not image.entrypoint,
        "it installs PyTorch": any(re.search(r"torch|\bexport\b", command) for command in image.installs),
        "it installs nothing": not image.installs,
        "it has the other ONNX Runtime": ("gpu" in " ".join(image.installs)) != (target == "cuda"),
    }
    if found := [what for what, is_so in wrong.items() if is_so]:
        fail(f"{target}: {', '.join(found)}")


@contextlib.contextmanager
def running_image() -> Iterator[str]:
    """Build the image for a CPU and run it as compose.yaml does."""
    tag, (port,) = "saeexport-containers-check", free_ports(1)
    subprocess.run(["docker", "build", "--file", DOCKERFILE, "--target", "cpu", "--tag", tag, ROOT], check=True)
    url = f"http://127.0.0.1:{port}"
    command = ["docker", "run", "--rm", *HARDENED, "--publish", f"127.0.0.1:{port}:8080",
               "--volume", f"{ARTIFACT}:/artifact:ro", tag]  # fmt: skip
    with running(command, f"{url}/v2/health/ready"):
        yield url


@contextlib.contextmanager
def running_without_docker(image: Image) -> Iterator[str]:
    """Install what the image installs, and run its command with its environment, its user and its rights."""
    http, grpc, metrics = free_ports(3)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        root.chmod(0o755)
        install(root, image)
        shutil.copytree(ARTIFACT, root / "artifact")
        (root / "tmp").mkdir()
        os.chmod(root / "tmp", 0o777)
        here = {"0.0.0.0": "127.0.0.1", "/artifact": f"{root}/artifact", "/tmp": f"{root}/tmp", ":8080": f":{http}"}

        def moved(text: str) -> str:
            for old, new in here.items():
                text = text.replace(old, new) if old.startswith(":") or text == old else text
            return text.replace("/opt/", f"{root}/opt/")

        environment = [f"{key}={moved(value)}" for key, value in image.environment.items()]
        as_user = ["env", "--ignore-environment", f"--chdir={moved(image.folder + '/')}", *environment]
        if os.geteuid() == 0:
            user, _, group = image.user.partition(":")
            as_user = ["setpriv", f"--reuid={user}", f"--regid={group}", "--clear-groups", "--no-new-privs",
                       "--bounding-set=-all", *as_user]  # fmt: skip
        ports = ["--http-port", http, "--grpc-port", grpc, "--metrics-port", metrics]
        command = [*as_user, *map(moved, [*image.entrypoint, *image.command]), *map(str, ports)]
        health = [*as_user, *map(moved, image.health)]
        if not subprocess.run(health, capture_output=True).returncode:
            fail("the health check passes without a service")
        if not subprocess.run([*as_user, "python", "-c", "import torch"], capture_output=True).returncode:
            fail("PyTorch is installed")
        with running(command, f"http://127.0.0.1:{http}/v2/health/ready") as process:
            subprocess.run(health, check=True)
            (uid,) = re.findall(r"^Uid:\s+(\d+)", Path(f"/proc/{process.pid}/status").read_text(), re.MULTILINE)
            done(f"the health check passes; the service runs as user {uid}")
            yield f"http://127.0.0.1:{http}"
        size = sum(file.stat().st_size for file in (root / "opt").rglob("*") if file.is_file())
        if written := [str(file) for file in (root / "tmp").rglob("*")]:
            fail(f"the service wrote {written}")
        done(f"it wrote nothing; its packages have {size / 1e6:.0f} MB")


def install(root: Path, image: Image) -> None:
    """Install the packages of the image below a folder, and copy the files of the service."""
    venv = root / "opt" / "venv"
    python = SYSTEM_PYTHON if SYSTEM_PYTHON.exists() else sys.executable  # any user can run it
    subprocess.run([python, "-m", "venv", venv], check=True)
    for command in image.installs[1:]:
        requirements = ROOT / "examples" / "mlserver" / "requirements.txt"
        words = [word.replace("/opt/", f"{root}/opt/") for word in shlex.split(command)]
        words = [str(requirements) if word == "requirements.txt" else word for word in words]
        subprocess.run([*words, "--quiet"], check=True, cwd=ROOT)
    (root / "opt" / "service").mkdir()
    for source, place in image.copied:
        if place.startswith("/opt/service"):
            shutil.copy(ROOT / source, root / "opt" / "service")


if __name__ == "__main__":
    main()
