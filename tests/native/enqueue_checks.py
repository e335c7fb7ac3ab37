"""What the native plugin computes, shown in a process of its own: `python enqueue_checks.py FOLDER [CHECK...]`.

The kernels are the real sources, run on the CPU by the host harness; the driver is a stand-in.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib
import math
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import layerport_builtin_layers
from host_driver import HostLaunchDriver
from layerport.bundle.plugin_spec import PluginSpec
from layerport.engine.plan_fields import write_field
from layerport.kernels.launch_rules import LaunchRule
from layerport.parameters.frameworks.torch_dtypes import from_dtype
from layerport.sizes.expressions import Const, Symbol
from layerport.sizes.tensors import sizes_of
from layerport.system.python_files import import_file
from layerport.targets import Target
from layerport.testing import Case
from layerport.testing.specs import converted, plugin_spec
from layerport_builtin_layers.rms_norm.reference import rms_norm
from layerport_builtin_layers.silu_mul.reference import silu_mul
from native.launch_bridge import LaunchBridge
from native.native_plugin import BUILD, CHAR, NativeLibrary, NativePlugin
from plugin_specs import FIRST
from plugin_specs import spec as small_spec
from small_setup import SMALL
from stepped_layer import centred

TARGET = Target("tensorrt", ("sm_90",))


CHECKS = ("faults", "contexts", "numbers", "steps", "cases", "sizes", "tactics", "threads", "fields", "hostile")
LEAST_SIZE = 256


def size_of(case: Case) -> int:
    """The elements of all tensors."""
    return sum(math.prod(shape) for shape in case.shape.shapes.values() if shape is not None)


class Checks:
    def __init__(self, folder: Path) -> None:
        self.library = NativeLibrary(folder)
        self.driver = HostLaunchDriver()
        self.driver.learn_all(pytest.MonkeyPatch())

    def plugin(self, spec: PluginSpec) -> NativePlugin:
        return self.library.plugin(write_field(spec, spec.digests))

    def specs(self, layer: Any, *args: Any) -> PluginSpec:
        found = plugin_spec(layer, TARGET, *args)
        assert found is not None
        return found

    def numbers(self) -> None:
        """Over changing shapes, with and without the optional weight."""
        weight = torch.randn(64).half()
        for given in (weight, None):
            spec = self.specs(rms_norm, torch.empty(3, 5, 64).half(), given, 1e-6)
            bridge = LaunchBridge(self.library, [spec], self.driver)
            plugin = self.plugin(spec).attach()
            for shape in ((2, 3, 64), (1, 1, 64), (5, 7, 64), (0, 7, 64)):
                self.norm(bridge, plugin, torch.randn(shape).half(), given)
            assert {launch[3] for launch in self.driver.launches} == {11}
        spec = self.specs(silu_mul, torch.empty(3, 96).half(), torch.empty(3, 96).half())
        bridge = LaunchBridge(self.library, [spec], self.driver)
        plugin = self.plugin(spec).attach()
        for rows in (2, 50, 1):
            self.gated(bridge, plugin, torch.randn(rows, 96).half())
        assert not self.library.log()

    def cases(self, dtypes: int = 1) -> None:
        """Each built-in layer as its own cases have it, in one of its dtypes."""
        folder = Path(layerport_builtin_layers.__file__).parent
        for file in sorted(folder.glob("*/case.py")):
            layer_case = importlib.import_module(f"layerport_builtin_layers.{file.parent.name}.case").CASE
            chosen: dict[str, Case] = {}
            for case in sorted(layer_case.cases(), key=size_of):
                if size_of(case) >= LEAST_SIZE:
                    chosen.setdefault(str(case.choice), case)
            assert chosen, file
            for case in list(chosen.values())[:dtypes]:
                self.case(case)

    def all_cases(self) -> None:
        """The same in all dtypes, which takes half a minute where no cache holds the kernels."""
        self.cases(dtypes=99)

    def case(self, case: Case) -> None:
        tensors = case.tensors()
        spec = self.specs(case.layer, *case.arguments(tensors))
        bridge = LaunchBridge(self.library, [spec], self.driver)
        plugin = self.plugin(spec).attach()
        expected = case.expected(tensors)
        names = [argument.name for argument in case.layer.signature.arguments]
        given = dict(zip(names, converted(case.layer, TARGET, *case.arguments(tensors)), strict=True))
        inputs = [given[one.name] for one in spec.inputs]
        sizes = sizes_of({one.name: value.shape for one, value in zip(spec.inputs, inputs, strict=True)})
        most = {one.name: one.greatest.evaluate(sizes) for one in spec.sizes}
        outputs = [torch.full(one.resolve({**sizes, **most}), -1, dtype=from_dtype(one.dtype)) for one in spec.outputs]
        counts = [torch.full((), -1) for _ in spec.sizes]
        bridge.run(plugin, inputs, [*outputs, *counts])
        known = {**sizes, **{name: int(count) for name, count in zip(most, counts, strict=True)}}
        shapes = [one.resolve(known) for one in spec.outputs]
        cut = (one.flatten()[: math.prod(shape)].reshape(shape) for one, shape in zip(outputs, shapes, strict=True))
        case.check(tuple(cut), expected)
        plugin.close()

    def steps(self) -> None:
        """Several launches that share a workspace, over changing shapes; and without one, or with no value for it."""
        spec = self.specs(centred, torch.empty(3, 96))
        (kernel,) = spec.kernels
        assert len(kernel.steps) == 2
        bridge = LaunchBridge(self.library, [spec], self.driver)
        plugin = self.plugin(spec).attach()
        assert plugin.workspace([(50, 96)]) == 256 * 2 and plugin.workspace([(900, 96)]) == 1536 + 256
        for rows in (3, 50, 1, 0):
            x, y = torch.randn(rows, 96), torch.full((rows, 96), torch.nan)
            bridge.run(plugin, [x], [y])
            torch.testing.assert_close(y, centred.reference(x))
        assert plugin.set_shapes([(3, 96)]) and not plugin.enqueue([16], [32])
        assert "kernel centred needs a workspace, and there is none" in self.library.log()
        falling = replace(kernel, scratch=(replace(kernel.scratch[0], nbytes=Symbol("x.0") - 9), kernel.scratch[1]))
        broken = self.plugin(replace(spec, kernels=(falling,))).attach()
        assert not broken.set_shapes([(3, 96)])
        assert "scratch tensor 0 has -6 bytes for x.0=3" in self.library.log()
        assert broken.workspace([(3, 96)]) == 0 and "its workspace is not known" in self.library.log()
        huge = replace(kernel, scratch=(replace(kernel.scratch[0], nbytes=Symbol("x.0") * 2**61), kernel.scratch[1]))
        broken = self.plugin(replace(spec, kernels=(huge,))).attach()
        assert not broken.set_shapes([(4, 96)]) and "does not fit 64 bits" in self.library.log()

    def norm(self, bridge: LaunchBridge, plugin: Any, x: torch.Tensor, weight: torch.Tensor | None) -> None:
        output = torch.full_like(x, torch.nan)
        bridge.run(plugin, [x] if weight is None else [x, weight], [output])
        wanted = rms_norm.reference(x.double(), None if weight is None else weight.double(), 1e-6)
        torch.testing.assert_close(output.double(), wanted, rtol=1e-2, atol=1e-2)

    def gated(self, bridge: LaunchBridge, plugin: Any, x: torch.Tensor) -> None:
        output = torch.full_like(x, torch.nan)
        bridge.run(plugin, [x, x], [output])
        wanted = torch.nn.functional.silu(x.double()) * x.double()
        torch.testing.assert_close(output.double(), wanted, rtol=1e-2, atol=1e-2)

    def tactics(self) -> None:
        """Each tactic gives the same numbers, by another kernel; copies keep the choice."""
        weight = torch.randn(256)
        spec = self.specs(rms_norm, torch.empty(4, 256), weight, 1e-6)
        bridge = LaunchBridge(self.library, [spec], self.driver)
        engine = self.plugin(spec)
        assert engine.tactics() == len({kernel.name for kernel in spec.kernels}) > 1
        blocks = []
        for tactic in range(engine.tactics() + 1):
            assert engine.set_tactic(tactic)
            plugin = engine.clone().attach()
            self.norm(bridge, plugin, torch.randn(4, 256), weight)
            blocks.append(self.driver.launches[-1][:2])
        assert len(set(blocks)) > 1 and blocks[0] == blocks[1]
        assert not engine.set_tactic(engine.tactics() + 1)
        wanted = f"has {engine.tactics()} kernels, tactic {engine.tactics() + 1} was asked for"
        assert f"layer layerport_builtin::rms_norm {wanted}" in (told := self.library.log()), told

    def sizes(self) -> None:
        """A size that depends on data is an output, which the kernel writes; memory is there for the greatest one."""
        keep_positive = import_file(SMALL).keep_positive
        spec = self.specs(keep_positive, torch.empty(3, 8))
        assert [one.name for one in spec.sizes] == ["u0"]
        bridge = LaunchBridge(self.library, [spec], self.driver)
        plugin = self.plugin(spec).attach()
        for rows in (2, 5, 1):
            x = torch.randn(rows, 8)
            places, count = torch.full((rows * 8, 2), -1), torch.full((), -1)
            bridge.run(plugin, [x], [places, count])
            wanted = torch.nonzero(x > 0)
            assert int(count) == len(wanted) and torch.equal(places[: len(wanted)], wanted)
            assert (places[len(wanted) :] == -1).all()
        plugin.close()

    def contexts(self) -> None:
        """Two contexts keep sizes of their own, share loaded kernels, and the last one unloads them."""
        spec = self.specs(silu_mul, torch.empty(3, 96), torch.empty(3, 96))
        bridge = LaunchBridge(self.library, [spec], self.driver)
        before = self.library.cuda.stand_in_loaded()
        engine = self.plugin(spec)
        first, second = engine.attach(), engine.attach()
        assert self.library.cuda.stand_in_loaded() == before + 1
        small, large = torch.randn(2, 96), torch.randn(50, 96)
        self.gated(bridge, first, small)
        self.gated(bridge, second, large)
        output = torch.full_like(small, torch.nan)
        self.driver.know(output.data_ptr(), output.numel() * 4)
        assert first.enqueue([small.data_ptr()] * 2, [output.data_ptr()])
        torch.testing.assert_close(output, torch.nn.functional.silu(small) * small)
        for one in (first, engine, second):
            one.close()
        assert self.library.cuda.stand_in_loaded() == before

    def threads(self) -> None:
        """Contexts in threads of their own, each with changing shapes."""
        spec = self.specs(silu_mul, torch.empty(3, 32), torch.empty(3, 32))
        bridge = LaunchBridge(self.library, [spec], self.driver)
        engine = self.plugin(spec)
        failures: list[BaseException] = []

        def work(seed: int) -> None:
            try:
                plugin = engine.attach()
                for rows in (1 + seed, 9 - seed, 3):
                    self.gated(bridge, plugin, torch.randn(rows, 32))
                plugin.close()
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for one in threads:
            one.start()
        for one in threads:
            one.join()
        assert not failures, failures

    def faults(self) -> None:
        """Each names the layer, what was expected and what came, in TensorRT's own log; the call fails."""
        library = self.library
        spec = self.specs(rms_norm, torch.empty(4, 64), torch.randn(64), 1e-6)
        plugin = self.plugin(spec).attach()
        assert not plugin.enqueue([16, 32], [48])
        assert "launched before its shapes are set" in library.log()
        assert not plugin.set_shapes([(4, 64)])
        assert "has 2 inputs, 1 came" in library.log()
        assert not plugin.set_shapes([(4, 64, 1), (64,)])
        assert "input x has rank 2, one of rank 3 came" in library.log()
        gated = self.plugin(self.specs(silu_mul, torch.empty(4, 96), torch.empty(4, 96))).attach()
        assert not gated.set_shapes([(1 << 60, 96)] * 2)
        assert "layer layerport_builtin::silu_mul, kernel" in (told := library.log())
        assert f"cannot be launched with gate.0={1 << 60}" in told, told
        gated.close()
        assert plugin.set_shapes([(4, 64), (64,)])
        library.cuda.stand_in_on_launch(None)
        library.cuda.stand_in_fail(0, 700)
        assert not plugin.enqueue([16, 32], [48])
        assert "cuLaunchKernel failed: CUDA_ERROR_UNKNOWN" in library.log()
        library.cuda.stand_in_fail(209, 0)
        fresh = self.plugin(self.specs(rms_norm, torch.empty(4, 128), torch.randn(128), 0.5))
        other = self.plugin(self.specs(silu_mul, torch.empty(4, 128).half(), torch.empty(4, 128).half())).attach()
        assert not library.log()  # a plan may be opened where it cannot run
        assert not other.set_shapes([(4, 128), (4, 128)])
        assert "cuLibraryLoadData failed: CUDA_ERROR_NO_BINARY_FOR_GPU" in library.log()
        library.cuda.stand_in_fail(0, 0)
        library.cuda.stand_in_architecture(120)
        assert not fresh.attach().set_shapes([(4, 128), (128,)])
        assert "has kernels for sm_90, not for sm_120" in library.log()
        library.cuda.stand_in_architecture(89)
        engine = self.plugin(small_spec())
        wrong = engine.attach()  # its images are no cubins
        assert not wrong.set_shapes([(2, 2), (2,)])
        assert "given as a cubin cannot be read: no CUDA ELF header" in library.log()
        wrong.close()
        engine.close()
        lonely = library.create(write_field(small_spec(), ()))
        assert lonely is not None and not lonely.attach().set_shapes([(2, 2), (2,)])
        assert f"kernel image {FIRST[:12]} is in no plan that is open" in library.log()
        library.cuda.stand_in_architecture(90)

    def hostile(self) -> None:
        """What a spec or a cubin of somebody else may hold, and sizes that no profile allows: the call fails."""
        spec = self.specs(silu_mul, torch.empty(4, 96), torch.empty(4, 96))
        bridge = LaunchBridge(self.library, [spec], self.driver)
        kernel = spec.kernels[0]
        n, one = Symbol("gate.0"), Const(1)
        for name, grid, guard, said in (
            ("zero", n // (n - 4), None, "gate.0=4: division by zero in a size expression"),
            ("wide", n * 2**62, None, "a size expression has a value that does not fit 64 bits"),
            ("huge", (n * 2**62 - 1) * (n * 2**62 - 3) * (n * 2**62 - 5), None, "127 bits"),
            ("below", n - 9, None, "grid x is -5, allowed are 1 to 2147483647"),
            ("guard", n, n // (n - 4) >= 1, "its predicate cannot be answered for gate.0=4: division by zero"),
        ):
            (step,) = kernel.steps
            rule = LaunchRule((grid, one, one), step.launch.block, step.launch.shared, step.launch.args)
            changed = replace(kernel, steps=(replace(step, launch=rule),), guard=guard)
            plugin = self.plugin(replace(spec, kernels=(changed,))).attach()
            assert not plugin.set_shapes([(4, 96)] * 2), name
            told = self.library.log()
            assert said in told and "1 node the_node: layer layerport_builtin::silu_mul, kernel" in told, told
            assert not plugin.enqueue([16, 32], [48]) and "before its shapes are set" in self.library.log()
            assert name != "below" or plugin.set_shapes([(10, 96)] * 2), self.library.log()
            plugin.close()
        plugin = self.plugin(spec).attach()
        for shapes, said in (
            ([(-1, 96)] * 2, "cannot be launched with gate.0=-1"),
            ([(2**62, 96)] * 2, "cannot be launched with gate.0=4611686018427387904"),
            ([(1,) * 9] * 2, "input gate has rank 2, one of rank 9 came"),
            ([()] * 2, "input gate has rank 2, one of rank 0 came"),
            ([], "has 2 inputs, 0 came"),
        ):
            assert not plugin.set_shapes(shapes) and said in (told := self.library.log()), told
        self.gated(bridge, plugin, torch.randn(3, 96))  # it goes on afterwards
        for tactic in (-1, 2**31 - 1):
            assert not plugin.set_tactic(tactic) and "was asked for" in self.library.log()
        self.cubins(spec)
        assert self.library.host.host_create_strangely(ctypes.c_void_p(self.library.creator)) == 0
        told = self.library.log()
        assert told.count("node the_node: it names no plugin spec") == 3, told
        assert told.count("node ?: the node's field is no plugin spec of layerport") == 3, told

    def cubins(self, spec: PluginSpec) -> None:
        """Images that are none, cut short, of lengths that lie, or for another GPU than the spec says."""
        (image,) = spec.images.values()
        other = plugin_spec(silu_mul, Target("tensorrt", ("sm_75",)), torch.empty(4, 96), torch.empty(4, 96))
        assert other is not None
        lying = bytearray(image)
        lying[40:48] = (len(image) - 8).to_bytes(8, "little")  # where the section headers are
        beyond = bytearray(image)
        beyond[60:62] = b"\xff\xff"  # how many there are
        for data, said in (
            (b"", "given as a cubin cannot be read"),
            (image[: len(image) // 2], "given as a cubin cannot be read"),
            (bytes(lying), "given as a cubin cannot be read"),
            (bytes(beyond), "given as a cubin cannot be read"),
            (next(iter(other.images.values())), "its image for sm_90 is one for sm_75"),
        ):
            digest = hashlib.sha256(data).hexdigest()
            kernels = tuple(
                replace(one, steps=tuple(replace(step, images={"sm_90": digest}) for step in one.steps))
                for one in spec.kernels
            )
            plugin = self.plugin(replace(spec, kernels=kernels, images={digest: data})).attach()
            loaded = self.library.cuda.stand_in_loaded()
            assert not plugin.set_shapes([(4, 96)] * 2) and said in (told := self.library.log()), told
            assert "node the_node: " in told and self.library.cuda.stand_in_loaded() == loaded
            plugin.close()

    def fields(self) -> None:
        """What a plan keeps is the node's field, byte for byte, with the NUL of a parser taken away."""
        one = small_spec()
        data = write_field(one, [FIRST])
        for given in (data, data + b"\0"):
            plugin = self.library.create(given, BUILD, CHAR)
            assert plugin is not None, self.library.log()
            assert plugin.field() == plugin.clone().field() == data
            assert (plugin.metadata(), plugin.cache_id()) == ("pack::layer", one.key)
        for bad in (b"", data[:-1], data + b"x", one.key.encode()):
            assert self.library.create(bad) is None
            assert "node the_node: " in self.library.log()
        own = small_spec(kernels=(), images={}, plugin_class="pack.plugins:Own")
        assert self.library.create(write_field(own, ())) is None
        assert "has its own plugin class pack.plugins:Own; open the bundle in Python" in self.library.log()


def main() -> None:
    checks = Checks(Path(sys.argv[1]))
    for name in sys.argv[2:] or CHECKS:
        getattr(checks, name)()
        print("passed", name, flush=True)


if __name__ == "__main__":
    main()
