"""A pack that claims modules of the class `Tempered` and does at each what the module's `deed` says."""

import sys
import time

from torch import Tensor

import layerport as lp
from layerport.errors import PackError


@lp.layer("NAMESPACE::plain")
def plain(x: Tensor) -> Tensor:
    return x * 3.0


@lp.layer("NAMESPACE::leaves")
def leaves(x: Tensor) -> Tensor:
    if "leaves" in DEEDS_OF_THE_REFERENCE:
        sys.exit(0)
    return x * 3.0


DEEDS_OF_THE_REFERENCE: set[str] = set()


class Mute(Exception):
    def __str__(self):
        raise RuntimeError("no words")

    __repr__ = __str__


class Own(BaseException):
    pass


class Forged(PackError):
    def __init__(self):
        pass

    def __str__(self):
        return 1 / 0


class Traceless(Exception):
    __traceback__ = property(lambda self: 1 / 0)


class Faceless:
    @property
    def __class__(self):
        raise RuntimeError("no class")

    def __repr__(self):
        sys.exit(5)


class Endless(tuple):
    def __iter__(self):
        while True:
            yield plain.bind()

    def __len__(self):
        raise ValueError("no length")


class Liar:
    __class__ = type(plain.bind())


class Meta(type):
    __name__ = property(lambda self: 1 / 0)


class Nameless(Exception, metaclass=Meta):
    pass


async def later():
    return None


def forward_that_exits(module, x):
    sys.exit(0)


def forward_that_raises(module, x):
    raise Mute


def odd_answer(module, x):
    return Faceless()


def do(module, deed):
    match deed:
        case "raise":
            raise ValueError("no such weight")
        case "exit":
            sys.exit(0)
        case "generator exit":
            raise GeneratorExit
        case "own":
            raise Own("mine")
        case "mute":
            raise Mute
        case "forged":
            raise Forged
        case "traceless":
            raise Traceless("no trace")
        case "nameless":
            raise Nameless("no name")
        case "recursion":
            return do(module, deed)
        case "memory":
            return bytearray(1 << 60)
        case "stop":
            raise StopIteration
        case "slow":
            time.sleep(module.seconds)
        case "behind":
            module.weight.detach().numpy()[:] += 1
            raise ValueError("after that")
        case "zero":
            module.weight.data.zero_()
        case "faceless":
            return Faceless()
        case "endless":
            return Endless((plain.bind(),))
        case "liar":
            return Liar()
        case "list":
            return [plain.bind()]
        case "later":
            return later()
        case "forward exits":
            return lp.rewrite(forward_that_exits, layers=(plain,))
        case "forward raises":
            return lp.rewrite(forward_that_raises, layers=(plain,))
        case "odd answer":
            return lp.rewrite(odd_answer, layers=(plain,))
        case "reference exits":
            return leaves.bind()
    return plain.bind()


@lp.hookimpl
def layerport_layers():
    return (plain, leaves)


@lp.hookimpl
def layerport_export_parameters(module, name):
    return do(module, module.deed) if type(module).__name__ == "Tempered" else None
