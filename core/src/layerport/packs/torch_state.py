"""The settings and random states of the process that decide what Torch computes: read, compared, put back.

The build leaves them as they were, and a pack that changes one is told so.  It imports Torch, so callers look first
whether the process has it.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from layerport.foreign import torch_private


@dataclass(frozen=True)
class _Setting:
    name: str
    read: Callable[[], Any]
    write: Callable[[Any], None]


def _set_grad_enabled(value: bool) -> None:
    torch.set_grad_enabled(value)


def _device() -> torch.device | None:
    device = torch.get_default_device()
    return None if device == torch.device("cpu") else device  # no device set is the CPU, without a mode that asks


def _global_hooks() -> tuple[dict[Any, Any], ...]:
    return tuple(map(dict, torch_private.global_module_hooks()))


def _write_global_hooks(hooks: tuple[dict[Any, Any], ...]) -> None:
    for now, before in zip(torch_private.global_module_hooks(), hooks, strict=True):
        now.clear()
        now.update(before)


def _autocast(device: str) -> _Setting:
    def read() -> tuple[bool, torch.dtype]:
        return torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)

    def write(value: tuple[bool, torch.dtype]) -> None:
        torch.set_autocast_enabled(device, value[0])
        torch.set_autocast_dtype(device, value[1])

    return _Setting(f"autocast on {device}", read, write)


_SETTINGS = (
    _Setting("default dtype", torch.get_default_dtype, torch.set_default_dtype),
    _Setting("default device", _device, torch.set_default_device),
    _Setting("gradient mode", torch.is_grad_enabled, _set_grad_enabled),
    _Setting(
        "deterministic algorithms",
        lambda: (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()),
        lambda value: torch.use_deterministic_algorithms(value[0], warn_only=value[1]),
    ),
    _Setting("float32 matmul precision", torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    _Setting("number of threads", torch.get_num_threads, torch.set_num_threads),
    _autocast("cpu"),
    _autocast("cuda"),
    _Setting("global module hooks", _global_hooks, _write_global_hooks),
)


class Settings:
    """Torch's settings at one moment."""

    def __init__(self) -> None:
        self._values = [setting.read() for setting in _SETTINGS]

    def changes(self) -> list[str]:
        """What has changed since, as texts such as "default dtype (torch.float32, now torch.float64)"."""
        return [
            setting.name if isinstance(before, tuple) else f"{setting.name} ({before}, now {now})"
            for setting, before in zip(_SETTINGS, self._values, strict=True)
            if (now := setting.read()) != before
        ]

    def restore(self) -> None:
        """Put back what has changed."""
        for setting, before in zip(_SETTINGS, self._values, strict=True):
            if setting.read() != before:
                setting.write(before)

    @classmethod
    def initial(cls) -> Settings:
        """Those of a process that has just imported Torch, for whoever looks when somebody else has imported it."""
        settings = cls()
        values: dict[str, Any] = {"default dtype": torch.float32, "default device": None, "gradient mode": True}
        values |= {"deterministic algorithms": (False, False), "float32 matmul precision": "highest"}
        settings._values = [
            values.get(setting.name, value) for setting, value in zip(_SETTINGS, settings._values, strict=True)
        ]
        return settings


class RandomStates:
    """The states of the random generators of Torch, Python and NumPy (where it is imported) at one moment."""

    def __init__(self) -> None:
        numpy = sys.modules.get("numpy")
        self._torch = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
        self._python = random.getstate()
        self._numpy = numpy.random.get_state() if numpy else None

    def changes(self) -> list[str]:
        """Whose state has changed since, such as "Torch's random state"."""
        found = []
        cuda = torch.cuda.get_rng_state_all() if self._cuda else []
        same_cuda = all(torch.equal(one, other) for one, other in zip(self._cuda, cuda, strict=True))
        if not torch.equal(self._torch, torch.get_rng_state()) or not same_cuda:
            found.append("Torch's random state")
        if random.getstate() != self._python:
            found.append("Python's random state")
        if self._numpy is not None:
            now = sys.modules["numpy"].random.get_state()
            if now[2:] != self._numpy[2:] or now[1].tobytes() != self._numpy[1].tobytes():
                found.append("NumPy's random state")
        return found

    def restore(self) -> None:
        """Set the generators back."""
        torch.set_rng_state(self._torch)
        if self._cuda:
            torch.cuda.set_rng_state_all(self._cuda)
        random.setstate(self._python)
        if self._numpy is not None:
            sys.modules["numpy"].random.set_state(self._numpy)


@contextmanager
def preserved() -> Iterator[None]:
    """Put Torch's settings and all random states back at the end of the block, also when it raises."""
    settings, states = Settings(), RandomStates()
    try:
        yield
    finally:
        settings.restore()
        states.restore()
