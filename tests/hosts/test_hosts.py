"""Hosts of every exporter give what `benchmarks/results/hosts.json` and the documentation say."""

import json

import pytest

from runtime.artifact.writing import write_text
from tests.hosts.exporters import one_thread
from tests.hosts.survey import CASES, SAEs, read, survey, versions
from tests.hosts.table import COMMAND, RESULTS
from tests.support.language_models import saved

EACH = [(exporter, model) for exporter, models in CASES for model in models]


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return saved(tmp_path_factory)


@pytest.fixture(scope="session")
def saes(tmp_path_factory):
    return SAEs(tmp_path_factory.mktemp("saes"))


@pytest.fixture(scope="session")
def rows(request):
    """The rows of this run, which `--record` writes if every case has run."""
    made = []
    yield made
    if request.config.getoption("--record"):
        assert len(made) == len(EACH), "only a run of all cases is recorded"
        order = {(exporter.name, model): i for i, (exporter, model) in enumerate(EACH)}
        made.sort(key=lambda row: order[row.exporter, row.model])
        content = {"command": COMMAND, "versions": versions(), "rows": [vars(row) for row in made]}
        write_text(RESULTS, json.dumps(content, indent=1) + "\n")


@pytest.mark.hosts("optimum", "onnxruntime_genai")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("exporter", "model"), EACH, ids=[f"{exporter.name}-{model}" for exporter, model in EACH])
def test_a_host_gives_what_the_table_says(request, exporter, model, folder, saes, rows, tmp_path):
    with one_thread():
        row = survey(exporter, model, folder(model), tmp_path, saes)
    rows.append(row)
    if not request.config.getoption("--record"):
        assert row.stable() == read()[exporter.name, model].stable()
