"""A plugin of pytest: `pytest --sae-artifact PATH` makes each hook of each graph of an artifact a test.

pytest imports every installed plugin at every start, so this module imports nothing of the packages at the top: a run
without `--sae-artifact` must not load ONNX Runtime.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from runtime import Report, SAESession

OPTION = "--sae-artifact"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of the plugin."""
    group = parser.getgroup("saeexport", "verification of exported SAEs")
    group.addoption(
        OPTION,
        action="append",
        default=[],
        metavar="PATH",
        help="folder of an artifact; each hook of each graph becomes a test (may be given several times)",
    )
    group.addoption(
        "--sae-device",
        default="auto",
        metavar="DEVICE",
        help="device to verify on, such as cpu or cuda (default: auto)",
    )
    group.addoption(
        "--sae-public-key", metavar="FILE", help="PEM file with the key or certificate that artifacts are signed with"
    )


@pytest.hookimpl(tryfirst=True)  # before -k, -m and --deselect choose among the tests
def pytest_collection_modifyitems(session: pytest.Session, items: list[pytest.Item]) -> None:
    """Add the tests of each artifact."""
    for path in _paths(session.config):
        items.extend(ArtifactTests.of(session, path).collect())


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that asks for `sae_session` once for each artifact."""
    paths = _paths(metafunc.config)
    if "sae_session" in metafunc.fixturenames and paths:
        ids = [path.name for path in paths]
        metafunc.parametrize("sae_session", paths, indirect=True, ids=ids, scope="session")


@pytest.fixture(scope="session")
def sae_session(request: pytest.FixtureRequest) -> Iterator[SAESession]:
    """Open a session of each artifact of `--sae-artifact`; without that option the test is skipped."""
    if not hasattr(request, "param"):
        pytest.skip(f"needs {OPTION} PATH")
    with open_session(request.config, request.param) as session:
        yield session


def open_session(config: pytest.Config, path: Path) -> SAESession:
    """Open an artifact as the options say."""
    from runtime import SAESession

    return SAESession(path, config.getoption("--sae-device"), public_key=_public_key(config))


class ArtifactTests(pytest.Collector):
    """The tests of one artifact, which is verified when the first of them runs.

    Attributes:
        artifact: Folder of the artifact.
    """

    artifact: Path

    @classmethod
    def of(cls, session: pytest.Session, path: Path) -> ArtifactTests:
        """Return the collector of an artifact."""
        name = f"sae-artifact::{path.name}"
        tests: ArtifactTests = cls.from_parent(session, name=name, nodeid=name)
        tests.artifact = path
        return tests

    def collect(self) -> list[pytest.Item]:
        """Return a test for each output of each graph, or a failing one if the artifact cannot be opened."""
        from runtime.errors import SAEError
        from runtime.parity.verify import judged_outputs, skipped_graphs

        try:
            with open_session(self.config, self.artifact) as session:
                manifest, device = session.artifact.manifest, session.device
        except (SAEError, OSError) as error:
            return [ArtifactTest.of(self, str(error))]
        outputs, skipped = judged_outputs(manifest), skipped_graphs(manifest, device)
        return [
            HookTest.of(self, graph, hook, {name for of, name in outputs if of == graph}, skipped.get(graph, ""))
            for graph, hook in outputs
        ]

    @cached_property
    def report(self) -> Report:
        """The report of the verification."""
        from runtime import verify

        return verify(self.artifact, self.config.getoption("--sae-device"), public_key=_public_key(self.config))


class ArtifactTest(pytest.Item):
    """The test that an artifact can be opened. It exists only if that fails.

    Attributes:
        problem: Why the artifact cannot be opened.
    """

    problem: str

    @classmethod
    def of(cls, tests: ArtifactTests, problem: str) -> ArtifactTest:
        """Return the test."""
        test: ArtifactTest = cls.from_parent(tests, name="artifact")
        test.problem = problem
        return test

    def runtest(self) -> None:
        """Fail."""
        pytest.fail(self.problem, pytrace=False)


class HookTest(pytest.Item):
    """The test of one output of one graph: its error is within its budget.

    Attributes:
        tests: The tests of the artifact.
        graph: Name of the graph.
        hook: Name of the output.
        tested: Names of all outputs of the graph that have a test.
        skip: Why the graph does not run on the device; "" if it does.
    """

    tests: ArtifactTests
    graph: str
    hook: str
    tested: set[str]
    skip: str

    @classmethod
    def of(cls, tests: ArtifactTests, graph: str, hook: str, tested: set[str], skip: str) -> HookTest:
        """Return the test."""
        test: HookTest = cls.from_parent(tests, name=f"{graph}::{hook}")
        test.tests, test.graph, test.hook, test.tested, test.skip = tests, graph, hook, tested, skip
        return test

    def runtest(self) -> None:
        """Fail with every reason, in numbers, unless the output passes.

        A failure of the graph that no test is about, such as an output that should not be there, fails all its tests.
        """
        if self.skip:
            pytest.skip(self.skip)
        report = self.tests.report
        of_graph = [verdict for verdict in report.verdicts if verdict.graph.partition(",")[0] == self.graph]
        own = [verdict for verdict in of_graph if verdict.hook == self.hook]
        others = [verdict for verdict in of_graph if verdict.hook not in self.tested]
        self.user_properties += [(verdict.graph, verdict.describe_errors()) for verdict in own]
        failures = [failure for verdict in (*own, *others) for failure in verdict.failures]
        if not own:
            failures += report.problems or [f"{self.graph}: {self.hook} was not judged."]
        if failures:
            pytest.fail("\n".join([*failures, report.differing_versions]).strip(), pytrace=False)


def _paths(config: pytest.Config) -> list[Path]:
    """Return the artifacts of the command line."""
    return [config.invocation_params.dir / path for path in config.getoption(OPTION)]


def _public_key(config: pytest.Config) -> Path | None:
    """Return the key of the command line; a test may have changed the working directory since."""
    key = config.getoption("--sae-public-key")
    return None if key is None else config.invocation_params.dir / key
