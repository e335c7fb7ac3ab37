"""Proves claims: runs the model on its example inputs and compares, at each claimed module, what its candidates give.

It happens inside forward hooks on a copy of the model made for it, and keeps only figures.  Whatever is run beside the
model itself runs on copies of the inputs, and writes to the module's tensors are undone, so that every run starts from
the same state.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from layerport.foreign import torch_private
from layerport.foreign.torch_private import pytree
from layerport.front.claim_records import Candidate, Claim, Probe
from layerport.front.claimed_layers import run_candidate
from layerport.front.comparison import TOLERANCES, Difference, compare, relative_error, tells_something
from layerport.front.copies import copy_of_inputs
from layerport.front.probes import LARGEST_MODULE, MAGNITUDES, can_vary, cut_inputs, elements, kind_of, probe_inputs
from layerport.front.samples import own_memory, run_model
from layerport.front.sources import Source
from layerport.layers.layer import BoundLayer
from layerport.packs.records import is_rewrite
from layerport.packs.torch_state import RandomStates, preserved
from layerport.packs.torch_writes import ReadOnly, named_tensors, same_bits, unwatched
from layerport.search.modules import structure_of
from layerport.system.foreign_text import reason


@dataclass(frozen=True)
class Run:
    """What one run on copied inputs gave, or why it gave nothing.

    outputs: the leaves that are not None.  written: the module's tensors that it wrote to, as they were afterwards.
    """

    outputs: list[Any] = field(default_factory=list)
    written: dict[str, torch.Tensor] = field(default_factory=dict)
    changes_inputs: bool = False
    random: bool = False
    error: BaseException | None = None


def prove(model: torch.nn.Module, source: Source, claims: Sequence[Claim]) -> None:
    """Run a copy of the model and note in each claim how far its candidates are from the module.

    model: a copy that is used for nothing else.  Raises UsageError where the model fails on its example inputs.
    """
    prover = _Prover()
    handles = []
    modules = dict(model.named_modules())
    for claim in claims:
        handles += prover.watch(claim, modules[claim.path])
    try:
        with preserved(), ReadOnly(dict(model.named_parameters())):
            run_model(model, source)
    finally:
        for handle in handles:
            handle.remove()


class _Prover:
    def __init__(self) -> None:
        self._busy = False
        self._kinds: dict[Any, Claim] = {}

    def watch(self, claim: Claim, module: torch.nn.Module) -> list[Any]:
        """Prove a claim at each call of its module."""
        calls: list[tuple[Any, list[int]]] = []

        # The first of all hooks sees what the layer would be given, the last one what it would have to give.
        def before(module: torch.nn.Module, args: Any, kwargs: Any) -> None:
            if not self._busy:
                calls.append(((args, kwargs), _versions((args, kwargs))))

        def after(module: torch.nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            if self._busy:  # a rewrite runs the module's children, whose own hooks must not count that
                return
            inputs, versions = calls.pop()
            self._busy = True
            try:
                claim.calls += 1
                if _versions(inputs) != versions:
                    claim.module_fault = "it changes its input, which a layer cannot"
                elif claim.module_fault is None:
                    with unwatched():  # each run has its own watch, and two cost twice
                        self._check(claim, module, inputs, output)
            finally:
                self._busy = False

        return [
            module.register_forward_pre_hook(before, with_kwargs=True, prepend=True),
            module.register_forward_hook(after, with_kwargs=True),
        ]

    def _check(self, claim: Claim, module: torch.nn.Module, inputs: Any, output: Any) -> None:
        trial = _Trial(claim, module, inputs)
        if claim.calls == 1:
            trial.look_at_module()
            if claim.module_fault is not None:
                return
        truth = Run([leaf for leaf in pytree.tree_leaves(output) if leaf is not None])
        if claim.keeps_state:  # the model's own call has moved it on
            truth = run_alone(module, inputs, named_tensors(module))
        if any(map(tells_something, truth.outputs)):
            claim.telling += 1
        else:
            claim.nothing = _why_nothing(truth.outputs)
        for candidate in claim.agreeing:
            difference = _compare_run(candidate, module, inputs, truth, named_tensors(module))
            claim.errors[candidate.number] = max(difference.error, claim.errors.get(candidate.number, 0.0))
            if difference.fault:
                claim.faults[candidate.number] = difference.fault
        if claim.calls == 1:
            for candidate in claim.agreeing:
                if isinstance(candidate.answer, BoundLayer) and candidate.loss is None and not claim.keeps_state:
                    args, kwargs = inputs
                    grade = structure_of(module, args, kwargs, candidate.answer)
                    claim.structure |= {} if grade is None else {candidate.number: grade}
        may_vary = all(not is_rewrite(one.answer) or one.answer.probe for one in claim.agreeing)
        if claim.telling == 1 and not claim.probes and claim.agreeing and may_vary and can_vary(inputs):
            self._probe(claim, trial)

    def _probe(self, claim: Claim, trial: _Trial) -> None:
        """Compare at other magnitudes: the formula must agree, not only the numbers of the example."""
        # What is lost depends on the values of a module's own weights.
        if not trial.is_large or any(one.loss is not None for one in claim.agreeing):
            claim.probes = trial.probes()
            return
        kind = kind_of(trial.module, trial.whole, claim.agreeing)
        earlier = self._kinds.setdefault(kind, claim)
        if earlier is claim:
            claim.probes = trial.probes()
            return
        claim.probes, claim.probed_at, claim.probe_faults = earlier.probes, earlier.path, earlier.probe_faults
        for number, fault in earlier.probe_faults.items():
            claim.faults[number] = f"{fault}, as {earlier.path or 'the root'} shows"


class _Trial:
    """Runs of one module beside the model: on cut inputs, and on whole ones once something refuses the cut ones."""

    def __init__(self, claim: Claim, module: torch.nn.Module, inputs: Any) -> None:
        self._claim = claim
        self.module = module
        self.whole = inputs
        self._inputs = cut_inputs(inputs)
        self._tensors = named_tensors(module) if claim.calls == 1 or claim.keeps_state else {}

    @property
    def is_large(self) -> bool:
        """Whether its kind is probed once."""
        return elements(self.module, self.whole) > LARGEST_MODULE

    def look_at_module(self) -> None:
        """Note in the claim why the module can be no layer, or that it keeps a state: two runs on the same inputs."""
        run = self._run_module(lambda inputs: inputs, watch_random=True)[1]
        again = self._run_module(lambda inputs: inputs)[1]
        self._claim.keeps_state = bool(run.written)
        if not run.written:
            self._tensors = {}
        self._claim.module_fault = _module_fault(run, again)

    def probes(self) -> tuple[Probe, ...]:
        """Compare at every magnitude."""
        return tuple(self._probe(magnitude) for magnitude in MAGNITUDES)

    def _probe(self, magnitude: float) -> Probe:
        nothing = None
        for from_real in (False, True):
            make = functools.partial(probe_inputs, magnitude=magnitude, from_real=from_real)
            inputs, truth = self._run_module(make)
            if truth.error is not None:
                nothing = f"the module fails: {_short(truth.error)}"
            elif not any(map(tells_something, truth.outputs)):
                nothing = f"its output there {_why_nothing(truth.outputs)}"
            else:
                return self._compare(magnitude, inputs, truth)
        return Probe(magnitude, nothing=nothing)

    def _run_module(self, make: Callable[[Any], Any], *, watch_random: bool = False) -> tuple[Any, Run]:
        inputs = make(self._inputs)
        run = run_alone(self.module, inputs, self._tensors, watch_random=watch_random)
        if run.error is None or self._inputs is self.whole:
            return inputs, run
        self._inputs = self.whole
        return self._run_module(make, watch_random=watch_random)

    def _compare(self, magnitude: float, inputs: Any, truth: Run) -> Probe:
        worst, rounding = 0.0, 0.0
        for candidate in self._claim.agreeing:
            difference = _compare_run(candidate, self.module, inputs, truth, named_tensors(self.module))
            if difference.fault is None:
                worst = max(worst, difference.error)
                continue
            if math.isinf(difference.error) and self._inputs is not self.whole:
                self._inputs = self.whole  # perhaps only this candidate minds that the inputs are cut
                return self._probe(magnitude)
            own = _rounding_of(self.module, candidate, inputs, truth)
            if own is None:
                fault = f"at inputs of magnitude {magnitude:g}: {difference.fault}"
                self._claim.faults[candidate.number] = self._claim.probe_faults[candidate.number] = fault
            else:
                rounding = max(rounding, own)
        if rounding:
            return Probe(magnitude, nothing=f"the module itself is off by {rounding:.2g} there, by its rounding")
        if not self._claim.agreeing:
            return Probe(magnitude, nothing="no candidate agrees any more")
        return Probe(magnitude, error=worst)


def run_alone(
    function: Callable[..., Any],
    inputs: Any,
    tensors: Mapping[str, torch.Tensor] | None = None,
    *,
    watch_random: bool = False,
) -> Run:
    """Run something on copies of (args, kwargs).

    tensors: what it may write to, which is noted and undone.  watch_random: whether to look if it draws random numbers.
    Both take longer than a small module itself.
    """
    states = RandomStates() if watch_random else None
    written = {}
    try:
        args, kwargs = copy_of_inputs(inputs)
        if tensors:
            with ReadOnly(tensors) as kept:
                output = function(*args, **kwargs)
                written = {name: tensors[name].detach().clone() for name in kept.written()}
                output = own_memory(output, kept)
        else:
            output = function(*args, **kwargs)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a pack's forward may also raise SystemExit, or something of its own
        return Run(error=error)
    pairs = zip(pytree.tree_leaves(inputs), pytree.tree_leaves((args, kwargs)), strict=True)
    changed = any(isinstance(one, torch.Tensor) and not same_bits(one, other) for one, other in pairs)
    random = states is not None and bool(states.changes())
    return Run([leaf for leaf in pytree.tree_leaves(output) if leaf is not None], written, changed, random)


def _run_candidate(
    candidate: Candidate, module: torch.nn.Module, inputs: Any, tensors: Mapping[str, torch.Tensor] | None = None
) -> Run:
    def run(*args: Any, **kwargs: Any) -> Any:
        return run_candidate(candidate.answer, module, args, kwargs)

    return run_alone(run, inputs, tensors)


def _compare_run(
    candidate: Candidate, module: torch.nn.Module, inputs: Any, truth: Run, tensors: Mapping[str, torch.Tensor]
) -> Difference:
    """How far a candidate is from the module on some inputs, in its outputs and in what it writes of the tensors."""
    run = _run_candidate(candidate, module, inputs, tensors)
    if run.error is not None:
        return Difference(math.inf, _short(run.error))
    kind = "reference" if isinstance(candidate.answer, BoundLayer) else "rewrite"
    if run.changes_inputs:
        return Difference(math.inf, f"its {kind} changes its input; write it without in-place operators")
    difference = compare(truth.outputs, run.outputs, candidate.loss)
    if difference.fault:
        again = _run_candidate(candidate, module, inputs, tensors)
        if again.error is not None or compare(run.outputs, again.outputs).fault:
            fault = f"its {kind} gives other outputs for the same inputs: it draws random numbers or keeps a state"
            return Difference(math.inf, fault)
        return difference
    if run.written.keys() != truth.written.keys():
        own, other = (", ".join(sorted(names)) or "nothing" for names in (truth.written, run.written))
        return Difference(math.inf, f"the module writes to {own} at each call, its {kind} to {other}")
    for name, tensor in truth.written.items():
        if compare([tensor], [run.written[name]]).fault:
            return Difference(math.inf, f"its {kind} leaves {name} otherwise than the module does")
    return difference


def _module_fault(run: Run, again: Run) -> str | None:
    """Why a module can be no layer: what it did in two runs on the same inputs."""
    if run.error is not None:
        return f"it fails when it is run again on the same inputs: {_short(run.error)}"
    if run.changes_inputs:
        return "it changes its input, which a layer cannot"
    if run.random:
        return "it draws random numbers, which a layer cannot"
    if again.error is not None or compare(run.outputs, again.outputs).fault:
        return "it gives other outputs for the same inputs, as if it kept a state that is no buffer"
    return None


def _rounding_of(module: torch.nn.Module, candidate: Candidate, inputs: Any, truth: Run) -> float | None:
    """How far the module is from itself in a wider type, where the candidate is about as near to that as the module.

    None where it is the candidate that is off, or where nothing wider tells.
    """
    wide = {torch.float32: torch.float64, torch.float16: torch.float32, torch.bfloat16: torch.float32}

    def widen(value: Any) -> Any:
        return value.to(wide[value.dtype]) if isinstance(value, torch.Tensor) and value.dtype in wide else value

    run = _run_candidate(candidate, module, inputs)
    types = {tensor.dtype for tensor in truth.outputs if isinstance(tensor, torch.Tensor) and tensor.dtype in wide}
    if len(types) != 1 or run.error is not None:
        return None
    target = wide[types.pop()]
    try:
        twin = copy.deepcopy(module).to(target)
        ideal = run_alone(twin, pytree.tree_map(widen, inputs))
    except Exception:  # a module that cannot be copied, or not be widened, has no ideal to compare with
        return None
    if ideal.error is not None or len(ideal.outputs) != len(truth.outputs):
        return None
    own = 0.0
    for best, want, have in zip(ideal.outputs, truth.outputs, run.outputs, strict=True):
        if not isinstance(want, torch.Tensor) or want.dtype not in TOLERANCES:
            if compare([want], [have]).fault:
                return None
            continue
        best = best.to(target)
        error, _ = relative_error(best, want.to(target))
        missed, _ = relative_error(best, have.to(target))
        if not missed <= max(TOLERANCES[want.dtype], candidate.loss or 0.0) + 2 * error:
            return None
        own = max(own, error)
    return own


def _versions(inputs: Any) -> list[int]:
    version, leaves = torch_private.versions(), pytree.tree_leaves(inputs)
    return [version(leaf) for leaf in leaves if isinstance(leaf, torch.Tensor) and not leaf.is_inference()]


def _why_nothing(outputs: Sequence[Any]) -> str:
    tensors = [value for value in outputs if isinstance(value, torch.Tensor)]
    if all(not bool(tensor.isnan().any()) and not bool(tensor.isinf().any()) for tensor in tensors):
        return "is all zeros"
    return "has no finite value other than zero"


def _short(error: BaseException) -> str:
    return reason(error, longest=200)
