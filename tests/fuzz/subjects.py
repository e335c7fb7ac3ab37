"""What is fuzzed: everything that layerport reads from strangers, each with sound inputs and a way to damage them.

A subject's `read` must end well or raise a LayerportError; whatever else comes out of it is a finding.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import shutil
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from fuzz.mutations import (
    FLOATS,
    NUMBERS,
    TEXTS,
    Mutate,
    bytes_mutation,
    changed_value,
    expression_mutation,
    json_mutation,
)
from layerport.bundle.bundle import MANIFEST, MODEL, PLUGINS, SAMPLES, Bundle
from layerport.errors import LayerportError
from layerport.kernels.cubin import Cubin, kernel_symbols
from layerport.kernels.workspace import lay_out
from layerport.sizes.expressions import Expr, parse


@dataclass(frozen=True)
class Subject:
    """One thing that is read.  seeds: sound inputs.  read: raises LayerportError where it refuses."""

    name: str
    seeds: tuple[bytes, ...]
    mutate: Mutate
    read: Callable[[bytes], None]

    def inputs(self, seed: int, start: int, count: int) -> Iterator[bytes]:
        """`count` damaged inputs, each of which follows from the seed and its number."""
        for number in range(start, start + count):
            random = Random(f"{self.name}/{seed}/{number}")
            data = random.choice(self.seeds)
            for _ in range(random.choice((1, 1, 1, 2, 3))):
                data = self.mutate(data, random)
            yield data


class Ground:
    """A copy of a sound bundle in which one file is damaged at a time, its digest in the manifest made to fit."""

    def __init__(self, bundle: Path, folder: Path) -> None:
        self.folder = Path(shutil.copytree(bundle, folder))
        self.sound = {path.name: path.read_bytes() for path in bundle.iterdir() if path.suffix != ".plan"}
        self.manifest = json.loads(self.sound[MANIFEST])

    def put(self, name: str, data: bytes) -> Bundle:
        """The bundle with this content in one of its files.  Raises LayerportError where it cannot be opened."""
        (self.folder / name).write_bytes(data)
        if name != MANIFEST:
            entry = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            manifest = {**self.manifest, "files": {**self.manifest["files"], name: entry}}
            (self.folder / MANIFEST).write_text(json.dumps(manifest))
        return Bundle.open(self.folder)


def subjects(bundle: Path, folder: Path) -> dict[str, Subject]:
    """All subjects over a sound bundle that has an engine; `folder` is theirs to write in."""
    ground = {name: Ground(bundle, folder / name) for name in ("manifest", "samples", "model")}
    sound = ground["manifest"].sound
    plan_fields, cubins = _plan_fields(sound[PLUGINS])
    symbols = {symbol for image in cubins for symbol in kernel_symbols(image)}
    parameters = tuple(sound[name] for name in (SAMPLES, PLUGINS))
    every = (
        Subject("manifest", (sound[MANIFEST],), json_mutation, lambda data: _read_manifest(ground["manifest"], data)),
        Subject("specs", (sound[PLUGINS],), _mutate_specs, _read_specs),
        Subject("samples", (sound[SAMPLES],), _mutate_safetensors, lambda data: _read_samples(ground["samples"], data)),
        Subject("model", (sound[MODEL],), _mutate_model, lambda data: _read_model(ground["model"], data)),
        Subject("expressions", _expressions(sound[PLUGINS]), expression_mutation, _read_expression),
        Subject("safetensors", parameters, _mutate_safetensors, _read_parameters),
        Subject("plan_fields", plan_fields, _mutate_plan_field, _read_plan_field),
        Subject("cubins", cubins, bytes_mutation, partial(_read_cubin, sorted(symbols))),
    )
    return {one.name: one for one in every}


def _read_manifest(ground: Ground, data: bytes) -> None:
    from layerport.commands.reports import inspect_bundle, print_inspection
    from layerport.session.session import check_inputs

    bundle = ground.put(MANIFEST, data)
    inputs, _ = bundle.samples()
    check_inputs(bundle, inputs)
    with contextlib.redirect_stdout(io.StringIO()) as out:
        print_inspection(inspect_bundle(ground.folder))
    assert "\x1b" not in out.getvalue() and "\u202e" not in out.getvalue(), "a control character reached the terminal"


def _read_samples(ground: Ground, data: bytes) -> None:
    from layerport.checks.verification import verify

    ground.put(SAMPLES, data)
    verify(ground.folder, device="cpu", kernels=False)


def _read_model(ground: Ground, data: bytes) -> None:
    from layerport.session.session import load

    ground.put(MODEL, data)
    with load(ground.folder, device="cpu") as session:
        session.run(session.bundle.samples()[0])


def _read_specs(data: bytes) -> None:
    from layerport.bundle.kernel_code import launches_of
    from layerport.bundle.plugin_spec import dump, from_bytes, to_bytes

    plugins = from_bytes(data)
    again = from_bytes(to_bytes(plugins))
    # As text: a NaN is no other's equal.
    assert {key: dump(spec.to_json()) for key, spec in again.specs.items()} == {
        key: dump(spec.to_json()) for key, spec in plugins.specs.items()
    }
    for spec in plugins.specs.values():
        sizes = {f"{slot.name}.{axis}": 3 for slot in spec.inputs for axis in range(min(slot.ndim, 8))}
        for output in spec.outputs:
            for dim in output.dims:
                _evaluate(dim, sizes)
        for kernel in spec.kernels:
            with contextlib.suppress(LayerportError):
                launches_of(kernel).resolve(sizes)
            with contextlib.suppress(LayerportError):
                lay_out(kernel.scratch, sizes)
            for digest, symbol in ((digest, step.symbol) for step in kernel.steps for digest in step.images.values()):
                with contextlib.suppress(LayerportError):
                    Cubin.read(spec.images[digest], symbol)


def _evaluate(expression: Expr, sizes: Mapping[str, int]) -> None:
    with contextlib.suppress(LayerportError):
        assert isinstance(expression.evaluate(sizes), int)


def _read_expression(data: bytes) -> None:
    expression = parse(data.decode("utf-8", "surrogateescape"))
    assert str(parse(str(expression))) == str(expression)
    for value in (0, 1, 7, 2**31 - 1):
        _evaluate(expression, dict.fromkeys(expression.symbols(), value))


def _read_parameters(data: bytes) -> None:
    from layerport.parameters.standard_form import Parameters

    found = Parameters.from_bytes(data)
    assert Parameters.from_bytes(found.to_bytes()) == found
    repr(found)


def _read_plan_field(data: bytes) -> None:
    from layerport.engine.plan_fields import read_field

    read_field(data)


def _read_cubin(symbols: Sequence[str], data: bytes) -> None:
    with contextlib.suppress(ValueError):  # what it is stated to raise
        symbols = [*symbols, *kernel_symbols(data)[:4]]
    refusals = []
    for symbol in symbols:
        try:
            Cubin.read(data, symbol)
        except LayerportError as error:
            refusals.append(error)
    if len(refusals) == len(symbols):
        raise refusals[0]


def _mutate_safetensors(data: bytes, random: Random) -> bytes:
    """A safetensors file with its header changed, as JSON or byte by byte, or its description, or its data."""
    length = int.from_bytes(data[:8], "little")
    if random.random() < 0.15 or length > len(data) - 8:
        return bytes_mutation(data, random)
    header, body = data[8 : 8 + length], data[8 + length :]
    if random.random() < 0.4:
        header = _described(header, random)
    else:
        header = json_mutation(header, random)
    if random.random() < 0.1:
        body = bytes_mutation(body, random)
    return len(header).to_bytes(8, "little") + header + body


def _described(header: bytes, random: Random) -> bytes:
    """The header with the JSON inside its metadata changed."""
    try:
        value = json.loads(header)
        metadata = value["__metadata__"]
        key = next(iter(metadata))
        metadata[key] = json_mutation(metadata[key].encode("utf-8", "surrogatepass"), random).decode("utf-8", "replace")
    except (ValueError, LookupError, TypeError, AttributeError, StopIteration, RecursionError):
        return json_mutation(header, random)
    return json.dumps(value).encode()


def _mutate_specs(data: bytes, random: Random) -> bytes:
    """A file of plugin specs with one spec changed and named anew after its content, so that its digest fits."""
    if random.random() < 0.3:
        return _mutate_safetensors(data, random)
    from layerport.bundle.plugin_spec import dump

    try:
        length = int.from_bytes(data[:8], "little")
        outer = json.loads(data[8 : 8 + length])
        header = json.loads(outer["__metadata__"]["layerport"])
        old = random.choice(sorted(header["specs"]))
        spec = changed_value(header["specs"].pop(old), random)
        new = hashlib.sha256(dump(spec)).hexdigest()[:24]
        header["specs"][new] = spec
        header["nodes"] = {node: new if key == old else key for node, key in header["nodes"].items()}
        outer["__metadata__"]["layerport"] = json.dumps(header)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return _mutate_safetensors(data, random)
    text = json.dumps(outer).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def _mutate_plan_field(data: bytes, random: Random) -> bytes:
    """A plugin's field with its spec changed, its head made to fit; now and then with bytes changed."""
    from layerport.bundle.plugin_spec import dump
    from layerport.engine.plan_fields import _HEAD, _IMAGE

    if random.random() < 0.3:
        return bytes_mutation(data, random)
    try:
        magic, _, _, _, packed, count = _HEAD.unpack_from(data)
        start = _HEAD.size + count * _IMAGE.size
        spec = json.loads(zlib.decompress(data[start : start + packed]))
    except (ValueError, zlib.error, struct.error):
        return bytes_mutation(data, random)
    text = dump(changed_value(spec, random))
    again = zlib.compress(text, 1)
    rest = data[start + packed :]
    head = _HEAD.pack(
        magic, start + len(again) + len(rest), hashlib.sha256(text).digest()[:12], len(text), len(again), count
    )
    return head + data[_HEAD.size : start] + again + rest


def _mutate_model(data: bytes, random: Random) -> bytes:
    """An ONNX file with fields of its messages changed; now and then with bytes changed."""
    import onnx
    from google.protobuf.message import DecodeError

    if random.random() < 0.3:
        return bytes_mutation(data, random)
    try:
        model = onnx.ModelProto.FromString(data)
    except DecodeError:
        return bytes_mutation(data, random)
    for _ in range(random.choice((1, 1, 2, 4))):
        message = random.choice(list(_messages(model)))
        with contextlib.suppress(TypeError, ValueError, OverflowError):
            _change_message(message, random)
    return bytes(model.SerializeToString())


def _messages(message: Any) -> Iterator[Any]:
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for one in value if field.is_repeated else (value,):
                yield from _messages(one)


def _change_message(message: Any, random: Random) -> None:
    field = random.choice(message.DESCRIPTOR.fields)
    many = field.is_repeated
    value = getattr(message, field.name)
    if field.message_type is not None:
        if many and value and random.random() < 0.7:
            one = random.choice(value)
            random.choice((lambda: value.remove(one), lambda: value.add().CopyFrom(one)))()
        elif many:
            value.add()
        elif random.random() < 0.5:
            message.ClearField(field.name)
        else:
            value.SetInParent()
        return
    made = _scalar(field, random)
    if not many:
        setattr(message, field.name, made)
    elif value and random.random() < 0.5:
        value[random.randrange(len(value))] = made
    else:
        value.append(made)


def _scalar(field: Any, random: Random) -> Any:
    if field.cpp_type == field.CPPTYPE_STRING:
        text = random.choice((*TEXTS, "X", "Identity", "Loop", "If", "Add", "location", "offset", "x", "y"))
        return text.encode("utf-8", "replace") if field.type == field.TYPE_BYTES else text
    if field.cpp_type in (field.CPPTYPE_FLOAT, field.CPPTYPE_DOUBLE):
        return random.choice(FLOATS)
    return random.choice((*NUMBERS, *range(24)))


def _expressions(plugins: bytes) -> tuple[bytes, ...]:
    """Texts of size expressions: those of a bundle's specs, and one for each function and sign."""
    from layerport.bundle.plugin_spec import from_bytes

    found = {str(dim) for spec in from_bytes(plugins).specs.values() for one in spec.outputs for dim in one.dims}
    for spec in from_bytes(plugins).specs.values():
        for launch in (step.launch for kernel in spec.kernels for step in kernel.steps):
            found |= {str(one) for one in (*launch.grid, launch.shared)}
    found |= {
        "min(x.0, 4*y.1) + max(n, 2) - 3",
        "where(n % 4 == 0, n//4, ceildiv(n, 4))",
        "and(n > 2, or(m <= 7, not(n != m)))",
        "(n + 3)//8*8 - -m",
        "max(1, " * 40 + "n" + ")" * 40,
        " + ".join(f"x.{number}*{number}" for number in range(60)),
    }
    return tuple(sorted(one.encode() for one in found))


def _plan_fields(plugins: bytes) -> tuple[tuple[bytes, ...], tuple[bytes, ...]]:
    from layerport.bundle.plugin_spec import from_bytes
    from layerport.engine.plan_fields import write_field

    specs = from_bytes(plugins).specs.values()
    fields = tuple(write_field(spec, digests) for spec in specs for digests in ((), tuple(spec.images)))
    cubins = tuple(sorted({image for spec in specs for image in spec.images.values()}))
    assert cubins, "the bundle has no plugin with a kernel"
    return fields, cubins
