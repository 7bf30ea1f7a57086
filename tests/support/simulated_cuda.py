"""A simulated GPU in host memory. It replaces the driver's calls and ONNX Runtime's CUDA sessions.

A stream holds its queued work and runs it only when something waits for it, which is as late as a GPU might run it.
Memory is filled with NaN when it is allocated or freed. A copy that starts too early, memory that is reused too early,
or a missing order between two streams therefore gives wrong values here, as it might on a GPU.
"""

import ctypes
import functools
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnx import TensorProto, helper

from runtime.artifact.folding import MATRIX
from runtime.devices import select as providers
from runtime.devices.cuda import driver
from runtime.devices.cuda.adding import read_adding_model
from runtime.devices.cuda.search import read_search_model
from runtime.errors import SAEError
from saeexport.graphs.passes.widen import widen
from saeexport.graphs.search import search_graph

POISON = 0xFF  # NaN in float32, float16 and bfloat16
LEGACY = 1


class Stream:
    """A queue of work that has not run yet."""

    def __init__(self, blocking=False):
        self.queue = []
        self.blocking, self.captured = blocking, None

    def append(self, work):
        """Queue work, or add it to the CUDA graph that is being captured."""
        (self.queue if self.captured is None else self.captured).append(work)

    def run(self, upto=None):
        """Run the queued work, or the first `upto` items ever queued."""
        count = len(self.queue) if upto is None else max(0, upto - self.done)
        for _ in range(count):
            work = self.queue.pop(0)
            self.done += 1
            work()

    done = 0

    @property
    def queued(self):
        """Number of items ever queued."""
        return self.done + len(self.queue)


class Card(driver.Card):
    """Replaces the real card without calling the driver."""

    def __init__(self, machine, index):
        super().__init__(machine, index, None)
        self.machine = machine

    def stream(self):
        address = 0x1000 * (len(self.machine.streams) + 1)
        self.machine.streams[address] = Stream()
        return address

    def is_non_blocking(self, stream):
        self.check_context()
        return not self.machine.streams[stream].blocking

    def destroy_stream(self, stream):
        self.machine.streams.pop(stream).run()

    def check_context(self):
        assert self._depth, "the GPU's context is current inside `exclusive` only"

    def synchronize(self, stream):
        self.check_context()
        assert not self.machine.capturing, "waiting breaks a capture"
        self.machine.streams[stream].run()
        self.machine.waits += 1

    def synchronize_all(self):
        for stream in self.machine.streams:
            self.synchronize(stream)

    def order(self, first, then):
        self.check_context()
        if first not in self.machine.streams:
            raise SAEError("cuEventRecord of the NVIDIA driver: error 400, invalid resource handle.")
        assert not self.machine.capturing, "a captured order would be repeated by every launch"
        if first != then:
            before, upto = self.machine.streams[first], self.machine.streams[first].queued
            self.machine.streams[then].append(lambda: before.run(upto))

    def allocate(self, nbytes):
        self.check_context()
        assert not self.machine.capturing, "allocating breaks a capture"
        if nbytes > self.machine.left:
            raise SAEError("cuMemAlloc_v2 of the NVIDIA driver: error 2, out of memory.")
        self.machine.left -= nbytes
        memory = np.full(nbytes + 64, POISON, np.uint8)
        self.machine.device[memory.ctypes.data] = memory
        self.machine.allocations += 1
        return memory.ctypes.data

    def free(self, pointer):
        self.check_context()
        assert not self.machine.capturing, "freeing breaks a capture"
        for stream in list(self.machine.streams.values()):  # the driver waits for all work that is queued
            stream.run()
        memory = self.machine.device.pop(pointer)
        memory[:] = POISON
        self.machine.left += memory.nbytes - 64

    def pinned(self, nbytes):
        self.check_context()
        memory = np.full(nbytes, POISON, np.uint8)
        self.machine.pinned.append((memory.ctypes.data, memory.ctypes.data + nbytes))
        return memory

    def copy(self, target, source, nbytes, stream):
        self.check_context()
        if not self.machine.is_fast(source):  # the driver reads pageable memory before it returns
            kept = ctypes.string_at(source, nbytes)
            self.machine.streams[stream].append(lambda: ctypes.memmove(target, kept, nbytes))
        else:
            self.machine.streams[stream].append(lambda: ctypes.memmove(target, source, nbytes))

    def capture(self, stream, queue):
        self.check_context()
        captured = self.machine.streams[stream].captured = []
        self.machine.capturing = True
        try:
            queue()
        finally:
            self.machine.capturing, self.machine.streams[stream].captured = False, None
        self.machine.graphs.append(captured)
        return len(self.machine.graphs)

    def launch(self, graph, stream):
        self.check_context()
        self.machine.launches.append(graph)
        for work in self.machine.graphs[graph - 1]:
            self.machine.streams[stream].append(work)

    def destroy_graph(self, graph):
        self.check_context()
        self.machine.graphs[graph - 1] = None


class Machine:
    """Replaces `runtime.devices.cuda.driver.Driver`, and counts allocations and waits."""

    version = "13.0"

    def __init__(self, capability=(9, 0), gpus=1, memory=1 << 40):
        self.streams = {LEGACY: Stream(blocking=True)}
        self.device, self.pinned, self.sessions = {}, [], []
        self.graphs, self.launches = [], []
        self.died_early = []  # what sessions that died had queued and not run
        self.left, self.allocations, self.waits, self.capturing = memory, 0, 0, False
        self.cards = {}
        self._gpus = [driver.GPU(i, "Simulated GPU", capability, memory) for i in range(gpus)]

    def gpus(self):
        return self._gpus

    def call(self, name, *arguments):
        assert name in ("cuCtxPushCurrent_v2", "cuCtxPopCurrent_v2")

    def card(self, index):
        return self.cards.setdefault(index, Card(self, index))

    def is_fast(self, address):
        """Tell whether memory is on the GPU or pinned, so that the GPU reads it later."""
        on_card = any(start <= address < start + memory.nbytes for start, memory in self.device.items())
        return on_card or any(start <= address < end for start, end in self.pinned)


class Session:
    """Replaces ONNX Runtime's session on CUDA. It computes on the CPU, when its stream runs."""

    def __init__(self, machine, model, options, providers):
        ((self.provider, self.options),) = providers
        self.machine, self.session_options, self.model = machine, options, model
        self.real = start_on_a_cpu(model, options)
        self.runs, self.runs_by_shapes, self.pending = 0, {}, []
        self._sess = Parts(machine, self.pending)
        machine.sessions.append(self)

    def get_providers(self):
        return [self.provider]

    def __getattr__(self, name):
        return getattr(self.real, name)  # inputs, outputs, metadata

    def io_binding(self):
        return Binding()

    def run_with_iobinding(self, binding, options):
        assert options.get_run_config_entry("disable_synchronize_execution_providers") == "1"
        assert options.get_run_config_entry("gpu_graph_id") == "-1"
        self.runs += 1
        shapes = tuple(shape for _, shape, _ in binding.inputs.values())
        before = self.runs_by_shapes[shapes] = self.runs_by_shapes.get(shapes, -1) + 1
        assert before >= 2 or not self.machine.capturing, "the first two runs allocate memory, which breaks a capture"
        stream = self.machine.streams[int(self.options["user_compute_stream"])]
        self.pending.append(binding)
        stream.append(functools.partial(_compute, binding, self.real, self.pending))


class Parts:
    """The C++ object of a session, which dies with it, after the callbacks of its weak references."""

    def __init__(self, machine, pending):
        self.machine, self.pending = machine, pending

    def __del__(self):
        self.machine.died_early += self.pending


def _compute(binding, session, pending):
    binding.compute(session)
    if binding in pending:  # a launch of a CUDA graph computes again
        pending.remove(binding)


class Binding:
    """Replaces ONNX Runtime's binding."""

    def __init__(self):
        self.inputs, self.outputs, self.kept = {}, {}, {}

    def bind_input(self, name, device, index, element, shape, pointer):
        assert device == "cuda"
        self.inputs[name] = (element, tuple(shape), pointer)

    def bind_cpu_input(self, name, array):
        self.kept[name] = array
        self.inputs[name] = (array.dtype, array.shape, array.ctypes.data)

    def bind_output(self, name, device, index, element, shape, pointer):
        assert device == "cuda"
        self.outputs[name] = (element, tuple(shape), pointer)

    def compute(self, session):
        binding = session.io_binding()
        for name, (element, shape, pointer) in self.inputs.items():
            binding.bind_input(name, "cpu", 0, element, shape, pointer)
        for name, (element, shape, pointer) in self.outputs.items():
            binding.bind_output(name, "cpu", 0, element, shape, pointer)
        session.run_with_iobinding(binding)


FOLDER = "session.model_external_initializers_file_folder_path"


class SessionOptions(ort.SessionOptions):
    """ONNX Runtime's options, which also keep the parameters that replace a file."""

    external = None

    def add_external_initializers(self, names, values):
        self.external = names, values
        super().add_external_initializers(names, values)


def start_on_a_cpu(model, options):
    """Return a session that computes a graph on the CPU: for half precision, its variant in float32."""
    ours = ort.SessionOptions()
    if model == read_adding_model("bfloat16"):
        model = wide_sum()
    elif model == read_search_model("bfloat16"):
        model = ir.to_proto(widen(search_graph("bfloat16"))).SerializeToString()
    elif isinstance(model, str):
        model = in_float32(Path(model))
    elif options.external is not None:
        ours.add_external_initializers(*options.external)
    elif (folder := config_entry(options, FOLDER)) is not None:
        ours.add_session_config_entry(FOLDER, folder)
        path = next((path for path in Path(folder).glob("*.onnx") if path.read_bytes() == model), None)
        if path is not None:
            model = in_float32(path)
        elif MATRIX.encode() in model:
            model = ir.to_proto(widen(ir.from_proto(onnx.load_from_string(model)))).SerializeToString()
        # else the weights are behind a link
    return REAL_SESSION(model, ours, providers=["CPUExecutionProvider"])


def config_entry(options, name):
    try:
        return options.get_session_config_entry(name)
    except RuntimeError:
        return None


def in_float32(path):
    wide = path.with_suffix(".wide.onnx")
    return str(wide if wide.exists() else path)


def wide_sum():
    """Return a model that adds two bfloat16 vectors in float32 and rounds the sum."""
    x, y, z = (helper.make_tensor_value_info(name, TensorProto.BFLOAT16, ["n"]) for name in "xyz")
    nodes = [helper.make_node("Cast", [name], [f"wide.{name}"], to=TensorProto.FLOAT) for name in "xy"]
    nodes += [helper.make_node("Add", ["wide.x", "wide.y"], ["sum"]), helper.make_node("Cast", ["sum"], ["z"], to=16)]
    graph = helper.make_graph(nodes, "sum", [x, y], [z])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8).SerializeToString()


def seen(dtype, shape, pointer):
    """Return a view of memory as an array."""
    nbytes = int(np.prod(shape)) * dtype.itemsize
    buffer = (ctypes.c_uint8 * nbytes).from_address(pointer)
    return np.frombuffer(buffer, np.uint8).view(dtype).reshape(shape)


class DeviceArray:
    """An array of another library on the GPU. Its values are queued on its stream, and not yet written."""

    def __init__(self, machine, values, stream=LEGACY, index=0):
        self.machine, self.stream, self.index = machine, stream, index
        self.shape, self.dtype = values.shape, values.dtype.name
        with machine.card(index).exclusive():
            self.pointer = machine.card(index).allocate(max(1, values.nbytes))
        self.keeps = values
        self.write(values)

    def write(self, values):
        """Queue the write of new values."""
        kept = values.tobytes()
        self.machine.streams[self.stream].queue.append(lambda: ctypes.memmove(self.pointer, kept, len(kept)))

    def __dlpack_device__(self):
        return (2, self.index)

    def __dlpack__(self, *, stream=None):
        from runtime.arrays import dlpack

        card = self.machine.card(self.index)
        with card.exclusive():
            card.order(self.stream, LEGACY if stream is None else stream)
        return dlpack.export_capsule(self.pointer, self.shape, self.dtype, (2, self.index), self)


def taken_by(machine, tensor, stream=LEGACY):
    """Return the values that another library reads from a tensor on its stream, once that stream has run."""
    from runtime.arrays import dlpack

    class OnStream:
        def __dlpack__(self, stream=None):
            return tensor.__dlpack__(stream=stream)

    got = dlpack.import_capsule(OnStream(), stream)
    machine.streams[stream].run()
    return seen(np.dtype(got.dtype), got.shape, got.pointer).copy()


REAL_SESSION = ort.InferenceSession


def simulate(monkeypatch, **more):
    """Make this process see a simulated GPU, and return it."""
    machine = Machine(**more)
    monkeypatch.setattr(driver, "driver", lambda: machine)
    for module in ("runtime.devices.cuda.backend", "runtime.devices.select", "runtime.devices.capabilities"):
        monkeypatch.setattr(f"{module}.driver", lambda: machine)
    monkeypatch.setattr(ort, "get_available_providers", lambda: list(providers.PROVIDERS.values()))
    monkeypatch.setattr(ort, "preload_dlls", lambda: None, raising=False)

    def session(model, options, providers, enable_fallback, disabled_optimizers):
        assert not enable_fallback
        assert disabled_optimizers == ({"MatMulAddFusion"} if providers[0][0] == "CUDAExecutionProvider" else None)
        if providers[0][0] == "CPUExecutionProvider":
            return REAL_SESSION(model, options, providers=providers)
        return Session(machine, model, options, providers)

    monkeypatch.setattr(ort, "InferenceSession", session)
    monkeypatch.setattr(ort, "SessionOptions", SessionOptions)
    return machine
