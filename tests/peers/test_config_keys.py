"""Every option of a SAELens config is read, or is on the list of options without effect."""

import ast
import subprocess
import sys
import zipfile

import pytest

from saeexport.checkpoints.formats import saelens, saelens_legacy
from saeexport.checkpoints.normalization import PUBLISHED

BEFORE_6 = ("0.1.0", "0.7.0", "1.8.0", "2.1.3", "3.0.0", "3.14.0", "3.23.1", "4.0.0", "4.4.5", "5.0.0", "5.11.0")
CONFIGS = ("LanguageModelSAERunnerConfig", "SAEConfig", "TrainingSAEConfig", "LoggingConfig")
_READ = (
    "d_in d_sae dtype model_name neuronpedia_id hook_name hook_point architecture apply_b_dec_to_input "
    "normalize_activations reshape_activations activation_fn activation_fn_str activation_fn_kwargs "
    "finetuning_scaling_factor k d_out rescale_acts_by_decoder_norm metadata hook_head_index hook_point_head_index"
)
READ = frozenset(_READ.split())


@pytest.mark.peers("sae_lens")
@pytest.mark.parametrize("version", BEFORE_6)
def test_releases_before_6(tmp_path, version):
    download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(tmp_path)]
    subprocess.run([*download, f"sae-lens=={version}"], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    options = set(options_of(wheel))
    assert len(options) > 40
    assert options <= READ | saelens_legacy.WITHOUT_EFFECT


def options_of(wheel):
    """Yield the fields of the classes of configs in a wheel, which is not installed."""
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if not name.endswith(".py"):
                continue
            for node in ast.walk(ast.parse(archive.read(name))):
                if isinstance(node, ast.ClassDef) and node.name in CONFIGS:
                    yield from (
                        line.target.id
                        for line in node.body
                        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name)
                    )


@pytest.mark.peers("sae_lens")
def test_the_installed_release():
    import dataclasses

    from sae_lens.registry import get_sae_class, get_sae_training_class

    for architecture in (*saelens.ARCHITECTURES, *saelens.IN_TRAINING):
        get = get_sae_training_class if architecture in saelens.IN_TRAINING else get_sae_class
        options = {field.name for field in dataclasses.fields(get(architecture)[1])}
        assert options <= READ | saelens.WITHOUT_EFFECT


@pytest.mark.peers("sae_lens")
def test_the_factors_of_saelens_list():
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    factors, normalizations = {}, {}
    for release in get_pretrained_saes_directory().values():
        if release.conversion_func is None:  # in SAELens' own format
            factors |= {(release.repo_id, hook): factor for hook, factor in release.norm_scaling_factor.items()}
            other = (release.config_overrides or {}).get("normalize_activations")
            normalizations |= {(release.repo_id, hook): other for hook in release.saes_map if other is not None}
    published = {(entry.repository, hook): entry for hook, entry in PUBLISHED.items()}
    assert factors == {key: entry.factor for key, entry in published.items() if entry.factor is not None}
    assert normalizations == {key: entry.normalization for key, entry in published.items() if entry.factor is None}
