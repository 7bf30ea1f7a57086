"""TensorRT's options and the folders of its engines, as far as they can be tested without a GPU."""

import dataclasses
import shutil
import sys
import threading

import pytest

from runtime import InputError, ProviderError
from runtime.artifact.contracts import graph_specs
from runtime.artifact.folder import read_artifact
from runtime.artifact.manifest import FileRecord
from runtime.devices.cuda.driver import GPU
from runtime.devices.tensorrt.options import Shapes, Versions, building, cache_folder, default_root, provider_options
from tests.support.samples import TINY

H100 = GPU(0, "NVIDIA H100 80GB HBM3", (9, 0), 80 << 30)
XAVIER = GPU(0, "Xavier", (7, 2), 16 << 30)
VERSIONS = Versions("10.9.0", "1.31.1")
SHAPES = Shapes(tokens=512, usual_tokens=64)


@pytest.fixture
def tiny():
    return read_artifact(TINY)


@pytest.fixture(autouse=True)
def full_float32(monkeypatch):
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")


def as_sae(artifact, needing_input=(), **changes):
    """Return the artifact with another SAE configuration."""
    sae = dataclasses.replace(artifact.manifest.sae, **changes)
    manifest = dataclasses.replace(artifact.manifest, sae=sae, graphs=graph_specs(sae, needing_input))
    return dataclasses.replace(artifact, manifest=manifest)


def with_file(artifact, name, sha256="0" * 64, size=1):
    files = {**artifact.manifest.files, name: FileRecord(sha256, size)}
    return dataclasses.replace(artifact, manifest=dataclasses.replace(artifact.manifest, files=files))


def options_of(artifact, graph="model", gpu=H100, **more):
    return provider_options(artifact, graph, gpu, VERSIONS, SHAPES, **more)


def profile(artifact, graph):
    options = options_of(artifact, graph)
    return [options[f"trt_profile_{bound}_shapes"] for bound in ("min", "opt", "max")]


def test_a_profile_ranges_from_one_token_to_a_block(tiny):
    for graph in ("model", "encode"):
        assert profile(tiny, graph) == ["input:1x6", "input:64x6", "input:512x6"]
    for graph, name in (("activate", "hook_sae_acts_pre"), ("decode", "hook_sae_acts_post")):
        assert profile(tiny, graph) == [f"{name}:1x16", f"{name}:64x16", f"{name}:512x16"]


def test_strengths_of_edits_have_one_row_or_one_for_each_token(tiny):
    assert profile(tiny, "steer") == [
        "input:1x6,feature_ids:1,feature_scale:1x1,feature_shift:1x1",
        "input:64x6,feature_ids:1,feature_scale:1x1,feature_shift:1x1",
        "input:512x6,feature_ids:64,feature_scale:512x64,feature_shift:512x64",
    ]


def test_profiles_of_heads_targets_and_several_inputs(tiny):
    assert profile(as_sae(tiny, head_shape=(2, 3)), "model") == ["input:1x2x3", "input:64x2x3", "input:512x2x3"]
    transcoder = as_sae(tiny, needing_input=["decode"], architecture="skip_transcoder", d_out=7)
    assert profile(transcoder, "model")[2] == "input:512x6,target:512x7"
    assert profile(transcoder, "decode")[0] == "input:1x6,hook_sae_acts_post:1x16"
    assert profile(transcoder, "steer")[1].startswith("input:64x6,target:64x7,feature_ids:1,")


def test_a_graph_whose_shapes_depend_on_a_value_is_refused(tiny):
    with pytest.raises(ProviderError, match=r'features.onnx takes k, which .* device="cuda" for features.onnx'):
        options_of(tiny, "features")


def test_an_unknown_dimension_is_refused(tiny):
    spec = tiny.manifest.graphs["model"]
    later = dataclasses.replace(spec, inputs=(dataclasses.replace(spec.inputs[0], shape=("layers", 6)),))
    tiny.manifest.graphs["model"] = later
    with pytest.raises(ProviderError, match="model.onnx has the dimension layers, and this release does not know"):
        options_of(tiny)


@pytest.mark.parametrize("shapes", [(0, 0), (4, 5), (4, 4, 0)])
def test_shapes_that_no_engine_can_have_are_refused(shapes):
    with pytest.raises(InputError, match="1 <= usual <= most must hold"):
        Shapes(*shapes)


def test_the_options_of_a_graph(tiny, tmp_path):
    options = options_of(tiny, "encode", dataclasses.replace(H100, index=3), root=tmp_path, stream=4096)
    folder = options["trt_engine_cache_path"]
    assert options == {
        "device_id": "3",
        "trt_profile_min_shapes": "input:1x6",
        "trt_profile_opt_shapes": "input:64x6",
        "trt_profile_max_shapes": "input:512x6",
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": folder,
        "trt_engine_cache_prefix": "encode",
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(tmp_path / "NVIDIA-H100-80GB-HBM3-sm90-tensorrt-10.9.0"),
        "has_user_compute_stream": "1",
        "user_compute_stream": "4096",
    }
    name = folder.removeprefix(options["trt_timing_cache_path"] + "/")
    assert name[:-16] == "blocks.0.attn.hook-z-6x16-encode-float32-onnxruntime-1.31.1-"
    assert list(tmp_path.iterdir()) == []


def test_weights_too_large_for_a_protobuf_message_are_passed_separately(tiny):
    assert "trt_load_user_initializer" not in options_of(tiny)
    large = with_file(tiny, tiny.manifest.weights, size=1 << 31)
    assert options_of(large)["trt_load_user_initializer"] == "1"


@pytest.mark.parametrize(("dtype", "switch"), [("float16", "trt_fp16_enable"), ("bfloat16", "trt_bf16_enable")])
def test_half_precision_is_enabled_only_for_artifacts_in_it(tiny, dtype, switch):
    switches = {"trt_fp16_enable", "trt_bf16_enable"}
    options = options_of(as_sae(tiny, dtype=dtype))
    assert switches & set(options) == {switch}
    assert options["trt_layer_norm_fp32_fallback"] == "1"
    assert switches & set(options_of(tiny)) == set()


def test_float32_is_refused_if_tensorrt_would_use_tf32(tiny, monkeypatch):
    options_of(tiny)
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE")
    with pytest.raises(ProviderError, match=r"Set NVIDIA_TF32_OVERRIDE=0 in the environment .* precision=\"tf32\""):
        options_of(tiny)
    options_of(tiny, precision="tf32")
    options_of(tiny, gpu=XAVIER)
    options_of(as_sae(tiny, dtype="float16"))


def test_tf32_is_refused_if_the_environment_forbids_it(tiny):
    with pytest.raises(ProviderError, match=r'precision="tf32", but NVIDIA_TF32_OVERRIDE=0 forbids it. Unset it'):
        options_of(tiny, precision="tf32")


def folder_of(artifact, graph="model", gpu=H100, versions=VERSIONS, shapes=SHAPES, root=None, **more):
    return provider_options(artifact, graph, gpu, versions, shapes, root=root, **more)["trt_engine_cache_path"]


@pytest.mark.parametrize(
    "change",
    [
        {"graph": "encode"},
        {"gpu": dataclasses.replace(H100, name="NVIDIA H200")},
        {"gpu": dataclasses.replace(H100, name="NVIDIA H100-80GB HBM3")},
        {"gpu": dataclasses.replace(H100, capability=(9, 1))},
        {"versions": dataclasses.replace(VERSIONS, tensorrt="10.9.1")},
        {"versions": dataclasses.replace(VERSIONS, onnxruntime="1.31.2")},
        {"shapes": Shapes(tokens=513, usual_tokens=64)},
        {"shapes": Shapes(tokens=512, usual_tokens=65)},
        {"extra": {"trt_max_workspace_size": "1073741824"}},
        {"extra": {"trt_builder_optimization_level": "5"}},
    ],
    ids=str,
)
def test_the_folder_of_an_engine_depends_on(tiny, change):
    assert folder_of(tiny, **change) != folder_of(tiny)


def test_the_folder_of_an_engine_depends_on_content_and_precision(tiny, monkeypatch):
    folders = [folder_of(tiny), folder_of(as_sae(tiny, dtype="float16")), folder_of(as_sae(tiny, dtype="bfloat16"))]
    folders += [folder_of(with_file(tiny, name)) for name in ("model.onnx", "weights.safetensors")]
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE")
    folders.append(folder_of(tiny, precision="tf32"))
    assert len(set(folders)) == len(folders)


def test_the_folder_does_not_depend_on_the_path_of_the_artifact_or_the_index_of_the_gpu(tiny, tmp_path):
    copy = read_artifact(shutil.copytree(TINY, tmp_path / "copy"))
    assert folder_of(copy, gpu=dataclasses.replace(H100, index=1)) == folder_of(tiny)
    assert folder_of(with_file(tiny, "decode.onnx")) == folder_of(tiny)


def test_engines_are_kept_in_the_users_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_root() == tmp_path / "saeexport" / "tensorrt"
    monkeypatch.setenv("HOME", str(tmp_path))
    for nothing in ("", "relative"):  # the XDG specification ignores relative paths
        monkeypatch.setenv("XDG_CACHE_HOME", nothing)
        assert default_root() == tmp_path / ".cache" / "saeexport" / "tensorrt"


@pytest.fixture
def places(tiny, tmp_path):
    """The options of an engine, its folder, and the folder of the timings."""
    options = options_of(tiny, root=tmp_path)
    folder = cache_folder(tmp_path, tiny, "model", H100, VERSIONS, {
        name: value for name, value in options.items() if name.startswith("trt_profile")
    })  # fmt: skip
    assert str(folder) == options["trt_engine_cache_path"]
    return options, folder, folder.parent


def test_finished_files_are_kept(places):
    options, folder, timings = places
    with building(options):
        (folder / "model.engine").write_text("engine")
        (timings / "sm90.timing").write_text("timings")
    with building(options):
        assert (folder / "model.engine").read_text() == "engine"
        assert (timings / "sm90.timing").read_text() == "timings"
    assert {path.name for path in folder.iterdir()} == {"model.engine"}


def test_unfinished_files_are_deleted(places):
    options, folder, timings = places
    with pytest.raises(KeyboardInterrupt), building(options):
        for path in (folder / "model.engine", folder / "model.profile", timings / "sm90.timing", timings / "other"):
            path.write_text("half a fi")
        raise KeyboardInterrupt
    with building(options):
        assert {path.name for path in folder.iterdir()} == {"unfinished"}
        assert {path.name for path in timings.iterdir()} == {folder.name, "lock", "other", "unfinished"}


@pytest.mark.skipif(sys.platform == "win32", reason="processes do not wait for each other there")
def test_only_one_builds_at_a_time(places):
    options, folder, _ = places
    order, inside = [], threading.Event()

    def second():
        inside.wait()
        with building(options):
            order.append((folder / "model.engine").read_text())

    thread = threading.Thread(target=second)
    thread.start()
    with building(options):
        inside.set()
        thread.join(0.2)
        assert thread.is_alive()
        (folder / "model.engine").write_text("whole")
    thread.join()
    assert order == ["whole"]


def test_a_folder_that_cannot_be_written_is_an_error(tiny, tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(ProviderError, match=r"engine cannot be kept in .*file.*: .*a writable folder .*XDG_CACHE_HOME"),
        building(options_of(tiny, root=tmp_path / "file")),
    ):
        pass
