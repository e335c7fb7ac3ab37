"""What must hold of the portable body: ONNX Runtime computes with it what the reference computes."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from layerport.errors import BuildError, LayerportError
from layerport.front.bodies import Bodies
from layerport.front.nodes import LayerNode
from layerport.parameters.comparison import compare
from layerport.parameters.conversion import to_standard
from layerport.parameters.frameworks.onnx_dtypes import from_dtype
from layerport.parameters.frameworks.torch_dtypes import to_dtype
from layerport.session.onnxruntime import open_session, open_twin, run_session
from layerport.sizes.tensors import TensorType, sizes_of
from layerport.testing.cases import Case, DTypeChoice
from layerport.testing.conformance.records import FoundFaultError, NotApplicableError
from layerport.testing.conformance.subjects import Subject, is_empty, run_reference

_IR_VERSION = 10
_CHANNELS = {None: "", 1: "the sizes of axis 1", -1: "the sizes of the last axis"}


def check_onnx(subject: Subject, choice: DTypeChoice) -> list[str]:
    """Every form of the reference runs in ONNX Runtime and gives the reference's numbers, at all shapes of its case.

    Where it has no form with every size open, such as a convolution in as many groups as there are channels, those of
    the axis of channels are known, as they are in a model: axis 1, or the last.
    """
    if not subject.smallest(choice):
        raise NotApplicableError("it has no case")
    failed: BuildError | None = None
    for channels, where in _CHANNELS.items():
        try:
            _check(subject, choice, channels=channels)
        except BuildError as error:
            failed = failed or error
        else:
            return [] if failed is None else [f"it has an ONNX form only where {where} are known: {failed.fault}"]
    assert failed is not None
    raise failed


def _check(subject: Subject, choice: DTypeChoice, *, channels: int | None) -> None:
    cases = subject.smallest(choice)
    known: set[str] = set()
    served = {case.id: [case] for case in cases}
    for other in subject.cases(choice):
        if other in cases or is_empty(other):
            continue
        near = [case for case in cases if _is_near(subject, case, other)]
        alike = [case for case in near if _ranks(case) == _ranks(other)]
        if not near:
            continue  # it has other sizes of parameters
        own = next((case for case in alike if _serves(subject, case, other, channels=channels)), None)
        if own is None:
            cases.append(other)
            own = other
            known |= {other.id} if alike else set()
        served.setdefault(own.id, []).append(other)
    # All at once: torch.onnx builds its library of operators anew at each call.
    nodes = [
        _node(subject, case, f"n{place}", known=case.id in known, channels=channels) for place, case in enumerate(cases)
    ]
    model = _model([])
    bodies = Bodies({})
    for case, node in zip(cases, nodes, strict=True):
        if case.id not in known:
            bodies.remember(node, subject.derivation(case, channels=channels)[1])
    bodies.attach(model, nodes)
    for case, node in zip(cases, nodes, strict=True):
        for other in served[case.id]:
            _compare(subject, other, node, model)


def _is_near(subject: Subject, case: Case, other: Case) -> bool:
    """Whether two cases differ in their inputs alone."""
    names = [argument.name for argument in subject.layer.signature.params]
    one, two = case.shape, other.shape
    same = all(one.shapes[name] == two.shapes[name] for name in names)
    return same and case.choice == other.choice and one.attributes == two.attributes


def _ranks(case: Case) -> list[int | None]:
    return [None if sizes is None else len(sizes) for sizes in case.shape.shapes.values()]


def _serves(subject: Subject, case: Case, other: Case, *, channels: int | None) -> bool:
    """Whether the body of a case is that of one alike: what it was traced with is so there too."""
    shapes, derivation = subject.derivation(case, channels=channels)
    before, sizes = (
        sizes_of({name: one for name, one in each.shape.shapes.items() if one is not None}) for each in (case, other)
    )
    return (
        not derivation.unread
        and all(before[place] == sizes[place] for place in (*derivation.fixed, *_known(shapes)))
        and all(sizes[one] == sizes[two] for one, two in derivation.equalities)
        and all(condition.evaluate(sizes) for condition in derivation.constraints)
    )


def _known(shapes: Mapping[str, TensorType | None]) -> list[str]:
    return [
        f"{name}.{axis}"
        for name, one in shapes.items()
        for axis, dim in enumerate(one.shape if one is not None else ())
        if dim is not None
    ]


def _node(subject: Subject, case: Case, name: str, *, known: bool, channels: int | None) -> LayerNode:
    """The layer in a model.  known: whether the model knows every size, which alone leads to this body."""
    shapes, _ = subject.derivation(case, channels=channels)
    if known:
        shapes = {
            name: one and replace(one, shape=tuple(case.shape.shapes[name] or ())) for name, one in shapes.items()
        }
    tensors = case.tensors()
    layer = subject.layer
    given = [ir.Value(name=key) if one is not None else None for key, one in tensors.items()]
    made = ir.node(
        layer.short_name,
        given,
        domain=layer.namespace,
        num_outputs=len(layer.signature.output_names),
        name=name,
    )
    return LayerNode(made, layer, shapes, subject.bound(case, tensors), "")


def _model(nodes: list[ir.Node]) -> ir.Model:
    graph = ir.Graph([], [], nodes=nodes, opset_imports={"": 20}, name="check")
    return ir.Model(graph, ir_version=_IR_VERSION)


def _compare(subject: Subject, case: Case, node: LayerNode, source: ir.Model) -> None:
    tensors = {name: one for name, one in case.tensors().items() if one is not None}
    wanted = run_reference(subject.layer, case.arguments(case.tensors()))
    names = subject.layer.signature.output_names
    ports = [TensorType(name, to_dtype(one.dtype), tuple(one.shape)) for name, one in zip(names, wanted, strict=True)]
    arrays = {name: to_standard(one).array for name, one in tensors.items()}
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "check.onnx"
            ir.save(_single(node, tensors, wanted, source), path)
            try:
                session, _ = open_session(path)
                got = run_session(session, arrays, ports)
            except LayerportError:
                twin = open_twin(path)
                if twin is None:
                    raise
                got = run_session(twin[0], arrays, ports)
    except BuildError as error:
        raise FoundFaultError(
            f"{case.id}: ONNX Runtime does not run its body: {error.fault}",
            "write the reference with operators that ONNX Runtime has for this dtype",
        ) from error
    try:
        # By the case's own tolerance a result so small that ONNX Runtime makes a zero of it is right.
        case.check(tuple(got[name] for name in names), [one.double() for one in wanted])
    except AssertionError:
        for name, one in zip(names, wanted, strict=True):
            found = compare(name, got[name], to_standard(one).array)
            if not found.passed:
                raise FoundFaultError(
                    f"{case.id}: ONNX Runtime gives something else for {name} than the reference in Torch: "
                    f"{found.answer}, largest difference {found.max_abs:.3g} (relative {found.max_rel:.3g})",
                    "write the reference in other operators: one of them means something else there",
                ) from None


def _single(node: LayerNode, tensors: dict[str, Any], wanted: Any, source: ir.Model) -> ir.Model:
    """A model of one node, with its function."""
    inputs = {
        name: ir.Value(
            name=name, type=ir.TensorType(_type(one)), shape=ir.Shape([f"{name}_{axis}" for axis in range(one.ndim)])
        )
        for name, one in tensors.items()
    }
    names = node.layer.signature.output_names
    outputs = [ir.Value(name=name, type=ir.TensorType(_type(one))) for name, one in zip(names, wanted, strict=True)]
    for value, one in zip(outputs, wanted, strict=True):
        value.shape = ir.Shape([None] * one.ndim)
    made = ir.Node(
        node.layer.namespace,
        node.layer.short_name,
        [inputs.get(name) for name in node.tensors],
        overload=node.node.overload or "",
        outputs=outputs,
        name=node.name,
    )
    graph = ir.Graph(list(inputs.values()), outputs, nodes=[made], opset_imports={"": 20}, name="check")
    model = ir.Model(graph, ir_version=_IR_VERSION)
    for key, function in source.functions.items():
        if key[2] == (node.node.overload or ""):
            model.functions[key] = function
            graph.opset_imports.update({**function.opset_imports, node.layer.namespace: 1})
    return model


def _type(tensor: Any) -> ir.DataType:
    return ir.DataType(int(from_dtype(to_dtype(tensor.dtype))))
