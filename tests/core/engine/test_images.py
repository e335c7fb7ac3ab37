"""Images that a plan holds once: plugins find them whatever comes first, and they go with the last engine."""

from __future__ import annotations

import gc
import threading
import weakref
from types import SimpleNamespace
from typing import Any

import pytest

import layerport as lp
from gpu_doubles import FakeEngine, HostDriver, tensorrt_double
from launch_doubles import LaunchDriver
from layerport.engine import flavours, images, plugin, runner
from layerport.engine.plan_fields import read_field, write_field
from layerport.errors import BuildError
from plan_reading import fields_in
from plugin_specs import FIRST, IMAGES, SECOND, spec
from small_models import sample
from small_setup import Built


def bare(kept: Any = ()) -> Any:
    return read_field(write_field(spec(), kept))


def test_a_spec_finds_the_images_that_others_keep() -> None:
    held = images.keep({FIRST: IMAGES[FIRST]})
    assert dict(images.complete(bare([SECOND])).images) == IMAGES
    with pytest.raises(BuildError) as caught:
        images.complete(bare())
    assert caught.value.fault == f"layer pack::layer: kernel image {SECOND[:12]} is in no plan that is open"
    again = images.keep({FIRST: IMAGES[FIRST]})
    assert again[0] is held[0]
    del held
    assert images.complete(bare([SECOND])).images[FIRST] == IMAGES[FIRST]
    del again
    gc.collect()
    with pytest.raises(BuildError, match=f"kernel image {FIRST[:12]} is in no plan"):
        images.complete(bare([SECOND]))


def test_a_reader_holds_what_is_kept_meanwhile_also_by_other_threads() -> None:
    with images.reading() as outer:
        with images.reading() as inner:
            thread = threading.Thread(target=images.keep, args=(IMAGES,))
            thread.start()
            thread.join()
        images.keep({FIRST: IMAGES[FIRST]})
    images.keep({SECOND: IMAGES[SECOND]})
    assert [len(inner), len(outer)] == [2, 3]
    assert dict(images.complete(bare()).images) == IMAGES
    inner.clear()
    outer.clear()
    gc.collect()
    assert FIRST not in images._images


class Plan:
    """What TensorRT makes of the plugins in a plan's bytes: all of them twice, of which it drops every other one."""

    def __init__(self, trt: Any) -> None:
        self.plugins = []
        for place, (one, data) in enumerate(fields_in(trt.plan)):
            creator = trt.get_plugin_registry().get_creator(one.short_name, "1", one.namespace)
            field = trt.PluginField(plugin.KEY_FIELD, data, trt.PluginFieldType.INT8)
            fields = trt.PluginFieldCollection([field])
            made = creator.create_plugin(f"node_{place}", fields, trt.TensorRTPhase.RUNTIME)
            if not one.images:  # those that keep images are gone at once
                self.plugins.append(made)
        assert self.plugins

    def run(self, launches: LaunchDriver) -> None:
        """The first run of a context: TensorRT tells the shapes, then asks for the launch."""
        for made in self.plugins:
            launches.sizes = [8, 8, 8, 8, 4] if made.spec.short_name == "scale" else [8, 8, 8, 4, 4]
            context = made.attach_to_context(None)
            described = [SimpleNamespace(dims=(3, 16)), SimpleNamespace(dims=(16,))]
            context.on_shape_change(described, described[:1])
            context.enqueue(None, None, [16, 32], [48], 0, 5)


def test_sessions_hold_the_images_of_their_plans(engine_bundle: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    driver, launches = HostDriver(), LaunchDriver()
    monkeypatch.setattr(runner, "_loaded", weakref.WeakValueDictionary())
    monkeypatch.setattr("layerport.engine.gpu.require_driver", lambda: driver)
    monkeypatch.setattr("layerport.kernels.launcher.require_driver", lambda: launches)
    monkeypatch.setattr(plugin, "native_architecture", lambda: "sm_89")
    plans: list[Plan] = []

    def make(trt: Any) -> FakeEngine:
        plans.append(Plan(trt))
        return FakeEngine(
            driver,
            trt,
            inputs={"x": sample().numpy().dtype},
            outputs={"output": sample().numpy().dtype},
            profiles=[{"x": [[1, 16], [3, 16], [64, 16]]}],
            compute=lambda arrays: {"output": arrays["x"]},
            shapes=lambda shapes: {"output": shapes["x"]},
        )

    trt = tensorrt_double(make)
    monkeypatch.setattr(flavours, "load", lambda name: trt)
    gc.collect()
    assert len(images._images) == 0
    first = lp.load(engine_bundle.path, device="cuda")
    second = lp.load(engine_bundle.path, device="cuda")
    assert len(images._images) == 2  # the norms share one
    first.close()
    plans[1].run(launches)
    assert len(launches.launches) == len(plans[1].plugins)
    second.close()
    gc.collect()
    assert len(images._images) == 0
    # A kernel that runs already needs the table no more; one that begins now says what is the matter.
    with pytest.raises(BuildError, match="is in no plan that is open"):
        plans[0].run(launches)
