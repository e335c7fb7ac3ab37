"""A pack that prints at import, through every way there is, and again in its hook."""

import os
import subprocess
import sys

from torch import Tensor

import layerport as lp

print("hello from python\x1b[31m")
print("a complaint", file=sys.stderr)
os.write(1, b"hello from native code\n")
subprocess.run([sys.executable, "-c", "print('hello from a child')"], check=True)


@lp.layer("NAMESPACE::same")
def same(x: Tensor) -> Tensor:
    return x * 1.0


@lp.hookimpl
def layerport_layers():
    print("hello from a hook")
    return (same,)
