"""What must hold of a layer's declaration, its reference, its operator, its gradients and its output rule."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from layerport.errors import LayerportError
from layerport.layers.derivation import Derivation
from layerport.parameters.frameworks.torch_dtypes import to_dtype
from layerport.sizes.tensors import sizes_of
from layerport.testing.cases import Case, DTypeChoice, Tolerance
from layerport.testing.conformance.records import FoundFaultError, NotApplicableError
from layerport.testing.conformance.subjects import Subject, elements, is_empty, run_reference
from layerport.testing.gradients import check_backward, has_backward
from layerport.testing.spellings import check_spellings

_LOOSEST = 0.5
# Tracing is about the operator, not about its dtypes: the first of them traces every form, views and what is empty too,
# the others one form.
_OF_VALUES = ("test_schema", "test_autograd_registration", "test_faketensor")
_ALL = (*_OF_VALUES, "test_aot_dispatch_dynamic")
_SHAPES = 12
_MOST_IN_GRADIENTS = 1000


def check_record(subject: Subject) -> None:
    """The layer says what it is, and has a case that reaches all that its kernels take."""
    layer, layer_case = subject.layer, subject.layer_case
    faults = []
    if not (layer.reference.__doc__ or "").strip():
        faults.append("its reference has no docstring: say what it computes, and the shapes")
    if layer_case is None:
        faults.append("it has no LayerCase: write one, in the pack's module or in one named case.py")
    else:
        faults += [
            f"the tolerance for {dtype} is {tolerance.relative:g} of the value, which lets anything pass"
            for dtype, tolerance in layer_case.tolerances.items()
            if tolerance.relative >= _LOOSEST
        ]
        if not subject.cases():
            faults.append("every shape of its case is too large for a CPU: add small ones")
        reached = [subject.kernel_dtypes(one) for one in layer_case.cases()]
        for kernel in layer.kernels:
            for dtypes in kernel.combinations(layer.signature):
                if not any(all(dtypes.get(name) == dtype for name, dtype in one.items()) for one in reached):
                    text = ", ".join(f"{name} {dtypes[name].value}" for name in reached[0] if name in dtypes)
                    faults.append(f"no case has the dtypes of kernel {kernel.name}: {text}")
    if faults:
        raise FoundFaultError(f"layer {layer.name} is not described in full", "add what is missing", faults=faults)


def check_reference(subject: Subject, choice: DTypeChoice) -> None:
    """The reference changes nothing, and gives the same for the same inputs."""
    finite = False
    cases = subject.cases(choice)
    for case in cases:
        args = case.arguments(case.tensors())
        before = _copies(args)
        torch.manual_seed(1)
        state = torch.get_rng_state()
        first = _copies(run_reference(subject.layer, args))
        if changed := [
            name
            for name, one, was in zip(_names(subject), args, before, strict=True)
            if isinstance(one, torch.Tensor) and not _same(one, was)
        ]:
            raise FoundFaultError(
                f"{case.id}: the reference changes its input {', '.join(changed)}",
                "write it without in-place operations on its inputs",
            )
        if not torch.equal(state, torch.get_rng_state()):
            raise FoundFaultError(
                f"{case.id}: the reference draws random numbers", "take the random values as an input of the layer"
            )
        torch.manual_seed(2)
        second = run_reference(subject.layer, args)
        if len(first) != len(second) or not all(map(_same, first, second)):
            raise FoundFaultError(
                f"{case.id}: the reference gives something else when it is called again",
                "compute from the arguments alone, without state and without memory that nobody has written",
            )
        finite = finite or any(bool(torch.isfinite(one.float()).any()) for one in first if one.numel())
    if cases and not finite:
        raise FoundFaultError(
            f"{cases[0].id}: the reference gives nothing finite for any shape of its case",
            "draw inputs that it has values for: LayerCase(draw=...)",
        )


def check_operator(subject: Subject, choice: DTypeChoice) -> None:
    """Torch's operator checks pass, and views give what contiguous tensors give."""
    layer = subject.layer
    smallest = subject.smallest(choice)
    empty = next((case for case in subject.cases(choice) if is_empty(case)), None)
    is_first = subject.layer_case is not None and choice == subject.layer_case.dtypes[0]
    for place, case in enumerate([*smallest, *([empty] if empty else [])]):
        _opcheck(subject, case, case.arguments(case.tensors()), "contiguous", compiled=is_first or place == 0)
    largest = max(smallest, key=_ranks, default=None)
    if largest is None:
        return
    # A tensor of one row has no strides worth a check.
    case = next((one for one in subject.cases(choice) if _ranks(one) >= _ranks(largest) and elements(one) > 8), largest)
    for what, change in (("transposed", _transposed), ("expanded", _expanded)):
        args = [change(one) if isinstance(one, torch.Tensor) else one for one in case.arguments(case.tensors())]
        plain = [one.contiguous() if isinstance(one, torch.Tensor) else one for one in args]
        _opcheck(subject, case, args, what, compiled=is_first)
        with torch.no_grad():
            got = layer(*args)
        outputs = (got,) if isinstance(got, torch.Tensor) else tuple(got)
        wanted = run_reference(layer, plain)
        if not all(_alike(case, one, other) for one, other in zip(outputs, wanted, strict=True)):
            raise FoundFaultError(
                f"{case.id}: {what} inputs give something else than contiguous ones with the same values",
                "do not read strides or memory in the reference (as_strided, data_ptr, set_)",
            )


def _alike(case: Case, got: torch.Tensor, wanted: torch.Tensor) -> bool:
    """Whether two results of one reference are equal but for the order of its sums."""
    allowed = case.layer_case.tolerances.get(to_dtype(wanted.dtype).value, Tolerance(0.0, 0.0))
    closest = Tolerance(max(allowed.absolute, 1e-8), max(allowed.relative, 1e-5))
    return torch.allclose(got, wanted, rtol=closest.relative, atol=closest.absolute, equal_nan=True)


def check_gradients(subject: Subject) -> None:
    """The gradients are those of the reference, and of what it computes."""
    layer = subject.layer
    cases = subject.smallest(most=_MOST_IN_GRADIENTS)
    seen: set[str] = set()
    for case in cases:
        tensors = case.tensors()
        floating = [one for one in tensors.values() if one is not None and one.is_floating_point()]
        if not floating or case.shape.reason in seen:
            continue
        args = [
            one.double().requires_grad_() if isinstance(one, torch.Tensor) and one.is_floating_point() else one
            for one in case.arguments(tensors)
        ]
        answer = layer.reference(*args)
        outputs = (answer,) if isinstance(answer, torch.Tensor) else tuple(answer)
        if not any(one.is_floating_point() for one in outputs):
            raise NotApplicableError("no output is of floating point")
        seen.add(case.shape.reason)
        if lossy := [one for one in outputs if one.is_floating_point() and one.dtype != torch.float64]:
            raise FoundFaultError(
                f"{case.id}: the reference gives {to_dtype(lossy[0].dtype).value} for inputs of float64",
                "return the dtype of the inputs",
            )
        try:
            if has_backward(layer):
                check_backward(layer, *args)
            else:
                torch.autograd.gradcheck(layer, args)
        except (AssertionError, RuntimeError) as error:
            text = " ".join(str(error).split())[:300]
            repair = (
                "compute in the dtype of the inputs where that is float64, without detach() and no_grad()"
                if not has_backward(layer)
                else "correct the backward; layerport.testing.check_backward compares it alone"
            )
            raise FoundFaultError(f"{case.id}: its gradients are wrong in float64: {text}", repair) from error
    if not seen:
        raise NotApplicableError(
            f"no case with floating-point inputs has at most {_MOST_IN_GRADIENTS} elements"
            if cases or subject.cases()
            else "it has no case"
        )


def check_spellings_of(subject: Subject) -> None:
    """Every spelling gives in float64 what the reference gives, at all shapes of the case."""
    cases = subject.cases()
    if not cases:
        raise NotApplicableError("it has no case")
    for case in cases:
        try:
            check_spellings(subject.layer, *case.arguments(case.tensors()))
        except AssertionError as error:
            raise FoundFaultError(
                f"{case.id}: {error}",
                "write the spelling so that it computes the same; layerport.testing.check_spellings compares it alone",
            ) from error


def check_shapes(subject: Subject, choice: DTypeChoice) -> None:
    """The output rule gives the reference's shapes and dtypes, on the case's shapes and on random ones."""
    layer = subject.layer
    for case in subject.smallest(choice):
        _, derivation = subject.derivation(case)
        params = {argument.name for argument in layer.signature.params}
        demanded = {size for name in params for size in case.shape.shapes.get(name) or ()}
        own = {place: case.shape.shapes[place.partition(".")[0]] for place in derivation.fixed}
        loose = [
            place
            for place, sizes in own.items()
            if sizes is None or sizes[int(place.partition(".")[2])] not in demanded
        ]
        if loose and layer.shapes_override is None and not _are_demanded(case, loose):
            raise FoundFaultError(
                f"{case.id}: the reference fixes a size that could be another: {', '.join(loose)}",
                "write it without int() of a size and without sizes as constants",
            )
        compared = 0
        for tensors in _random_shapes(case, params, derivation):
            args = case.arguments(tensors)
            try:
                outputs = run_reference(layer, args)
            except Exception:  # the sizes of several tensors that only looked as if they could differ
                continue
            sizes = sizes_of({name: one.shape for name, one in tensors.items() if one is not None})
            if not all(condition.evaluate(sizes) for condition in derivation.constraints):
                continue
            compared += 1
            _compare_rule(case, derivation, sizes, outputs, layer.shapes_override is not None)
        if not compared:
            raise FoundFaultError(
                f"{case.id}: the output rule holds for no shape of the case", "see its conditions with a shape_rule"
            )


def _are_demanded(case: Case, places: Sequence[str]) -> bool:
    """Whether the reference refuses, with a ValueError, any other size there, as that of a coordinate."""
    tensors = case.tensors()
    for name, one in tensors.items():
        if one is not None:
            shape = [size + (f"{name}.{axis}" in places) for axis, size in enumerate(one.shape)]
            tensors[name] = torch.zeros(shape, dtype=one.dtype)
    try:
        run_reference(case.layer, case.arguments(tensors))
    except ValueError:
        return True
    except Exception:  # what fails otherwise was not looked at by the reference
        return False
    return False


def _compare_rule(
    case: Case, derivation: Any, sizes: dict[str, int], outputs: Sequence[torch.Tensor], written: bool
) -> None:
    repair = "correct the shape rule" if written else "write a shape_rule, and report this: the rule was derived"
    if len(outputs) != len(derivation.outputs):
        raise FoundFaultError(
            f"{case.id}: the output rule has {len(derivation.outputs)} outputs, the reference {len(outputs)}", repair
        )
    by_data = {one.name for one in derivation.size_symbols}
    for place, (rule, output) in enumerate(zip(derivation.outputs, outputs, strict=True)):
        same = rule.dtype == to_dtype(output.dtype) and rule.ndim == output.ndim
        for axis, dim in enumerate(rule.dims if same else ()):
            if not dim.symbols() & by_data:
                same = same and dim.evaluate(sizes) == output.shape[axis]
        if not same:
            raise FoundFaultError(
                f"{case.id}: for {sizes} the rule says {rule.form} of output {place}, the reference gives "
                f"{to_dtype(output.dtype).value}{list(output.shape)}",
                repair,
            )


def _random_shapes(case: Case, params: set[str], derivation: Derivation) -> Iterator[dict[str, torch.Tensor | None]]:
    """The case's tensors, then some with each size of its inputs replaced by another one.

    First the same for all sizes that are equal in the case, then for those alone that the output rule has equal: in a
    case of one row and one column both are 1, and only one of them may have to stay.
    """
    tensors = case.tensors()
    yield tensors
    given = params | set(case.shape.values)
    by_size: dict[int | str, int] = {size: size for name in params for size in case.shape.shapes.get(name) or ()}
    first = {second: first for first, second in derivation.equalities}
    by_place: dict[int | str, int] = {first.get(place, place): size for place, size in derivation.fixed.items()}
    for name, one in tensors.items():
        for axis, size in enumerate(one.shape if one is not None and name in given else ()):
            by_place[first.get(f"{name}.{axis}", f"{name}.{axis}")] = size
    draw = random.Random(0)
    for turn in range(2 * _SHAPES):
        chosen: dict[int | str, int] = dict(by_size if turn < _SHAPES else by_place)
        changed: dict[str, torch.Tensor | None] = {}
        for name, one in tensors.items():
            if one is None or name in given:
                changed[name] = one
                continue
            places = [first.get(f"{name}.{axis}", f"{name}.{axis}") for axis in range(one.ndim)]
            keys = one.shape if turn < _SHAPES else places
            sizes = [chosen.setdefault(key, draw.randint(1, 9)) for key in keys]
            if case.layer_case.draw is not None:
                values = case.layer_case.draw(name, tuple(sizes), torch.Generator().manual_seed(0))
            else:
                values = torch.randn(sizes, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
            changed[name] = values.to(one.dtype)
        yield changed


def _opcheck(subject: Subject, case: Case, args: Sequence[Any], what: str, *, compiled: bool = True) -> None:
    """Torch's checks of an operator; compiled: also those that trace it, which take most of the time."""
    given = tuple(
        one.detach().requires_grad_() if isinstance(one, torch.Tensor) and one.is_floating_point() else one
        for one in args
    )
    try:
        torch.library.opcheck(subject.layer.operator, given, test_utils=_ALL if compiled else _OF_VALUES)
    except LayerportError:
        raise
    except Exception as error:
        text = " ".join(str(error).split())[:300]
        raise FoundFaultError(
            f"{case.id}: torch.library.opcheck fails on {what} inputs: {text}",
            "write the reference with Torch operators alone, without reading values, memory or strides",
        ) from error


def _transposed(tensor: torch.Tensor) -> torch.Tensor:
    """The same values and shape, laid out with the axes in the opposite order."""
    if tensor.ndim < 2:
        wide = torch.empty((*tensor.shape, 2), dtype=tensor.dtype)
        wide[..., 0] = tensor
        return wide[..., 0]
    back = tuple(reversed(range(tensor.ndim)))
    return tensor.permute(back).contiguous().permute(back)


def _expanded(tensor: torch.Tensor) -> torch.Tensor:
    """One row for all rows, without memory of its own."""
    return tensor[:1].expand(tensor.shape) if tensor.ndim else tensor


def _ranks(case: Case) -> int:
    return sum(len(sizes) for sizes in case.shape.shapes.values() if sizes is not None)


def _names(subject: Subject) -> list[str]:
    return [argument.name for argument in subject.layer.signature.arguments]


def _copies(values: Sequence[Any]) -> list[Any]:
    return [one.clone() if isinstance(one, torch.Tensor) else one for one in values]


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Bit for bit, a NaN being equal to itself."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    wide = [each.to(torch.float64) if each.is_floating_point() else each for each in (one, other)]
    return bool(
        torch.equal(*(torch.nan_to_num(each, nan=12345.0) if each.is_floating_point() else each for each in wide))
    )
