"""A session's calls through the real `cuda.bindings` to a stub of libcuda whose device memory is host memory.

It shows that the bindings take every call as it is made: names, number and types of arguments, what comes back.  The
engine is a double that computes in Python; streams run at once, and a graph replays nothing.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from small_setup import TESTS, Built

STUB = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
static long counts[6];  /* memory, streams, events, graphs, contexts, pushed */
typedef void *P;
typedef unsigned long long A;
static __thread P current;
int cuInit(unsigned f) { return 0; }
int cuDriverGetVersion(int *v) { *v = 13000; return 0; }
int cuCtxGetDevice(int *d) { *d = (int)(long)current - 0x77; return current ? 0 : 201; }
int cuCtxSetCurrent(P c) { current = c; return 0; }
int cuDeviceGet(int *d, int n) { *d = n; return n > 1; }
int cuDeviceGetName(char *s, int n, int d) { strncpy(s, "Stub GPU", n); return 0; }
int cuDeviceGetAttribute(int *v, int a, int d) { *v = a == 75 ? 8 : a == 76 ? 9 : -1; return *v < 0; }
int cuDevicePrimaryCtxRetain(P *c, int d) { counts[4]++; *c = (P)(0x77l + d); return 0; }
int cuDevicePrimaryCtxRelease(int d) { counts[4]--; return 0; }
int cuCtxPushCurrent(P c) { counts[5]++; return c != (P)0x77; }
int cuCtxPopCurrent(P *c) { counts[5]--; *c = (P)0x77; return 0; }
int cuMemAlloc(A *p, size_t n) { counts[0]++; return posix_memalign((P *)p, 256, n); }
int cuMemFree(A p) { counts[0]--; free((P)p); return 0; }
int cuMemcpyHtoDAsync(A d, P s, size_t n, P t) { memcpy((P)d, s, n); return !t; }
int cuMemcpyDtoHAsync(P d, A s, size_t n, P t) { memcpy(d, (P)s, n); return !t; }
int cuMemcpyDtoDAsync(A d, A s, size_t n, P t) { memcpy((P)d, (P)s, n); return !t; }
int cuStreamCreate(P *s, unsigned f) { counts[1]++; *s = (P)0x5000; return f != 1; }
int cuStreamDestroy(P s) { counts[1]--; return 0; }
int cuStreamSynchronize(P s) { return 0; }
int cuEventCreate(P *e, unsigned f) { counts[2]++; *e = (P)0x6000; return f != 2; }
int cuEventRecord(P e, P s) { return e != (P)0x6000; }
int cuStreamWaitEvent(P s, P e, unsigned f) { return e != (P)0x6000 || f; }
int cuEventDestroy(P e) { counts[2]--; return 0; }
int cuPointerGetAttribute(P v, int a, A p) { *(int *)v = 0; return a != 9; }
int cuStreamBeginCapture(P s, int mode) { return mode != 1; }
int cuStreamEndCapture(P s, P *g) { counts[3]++; *g = (P)0x8000; return 0; }
int cuGraphInstantiate(P *e, P g, unsigned long long f) { counts[3]++; *e = (P)0x9000; return f != 0; }
int cuGraphInstantiateWithFlags(P *e, P g, unsigned long long f) { return cuGraphInstantiate(e, g, f); }
int cuGraphDestroy(P g) { counts[3]--; return g != (P)0x8000; }
int cuGraphExecDestroy(P g) { counts[3]--; return g != (P)0x9000; }
int cuGraphLaunch(P g, P s) { return g != (P)0x9000; }
long stub_count(int i) { return counts[i]; }
int cuGetProcAddress_v2(const char *name, P *out, int version, uint64_t flags, int *status) {
  Dl_info here;
  dladdr((P)cuInit, &here);
  *out = dlsym(dlopen(here.dli_fname, RTLD_NOW), name);
  if (status) *status = !*out;
  return *out ? 0 : 500;
}
int cuGetProcAddress(const char *name, P *out, int version, uint64_t flags) {
  return cuGetProcAddress_v2(name, out, version, flags, 0);
}
"""
RUN = """
import ctypes, gc, json, sys
import numpy as np
from types import SimpleNamespace
from gpu_doubles import CudaArray, FakeEngine, tensorrt_double
import layerport as lp
from layerport.engine import flavours

at_once = SimpleNamespace(submit=lambda stream, work: work(), captured=(), adopt=lambda *_: None,
                          current=lambda: None, depth=1)
single = np.dtype(np.float32)

def make(module):
    return FakeEngine(at_once, module, inputs={"x": single}, outputs={"output": single},
                      profiles=[{"x": [[1, 16], [3, 16], [64, 16]]}],
                      compute=lambda arrays: {"output": arrays["x"] * 2},
                      shapes=lambda shapes: {"output": shapes["x"]})

trts = [tensorrt_double(make, own_graphs=own) for own in (False, True)]
x = np.arange(48, dtype=np.float32).reshape(3, 16)
why = []
for graph, trt in ((graph, trt) for trt in trts for graph in (False, True)):
    flavours.load = lambda name: trt
    with lp.load(sys.argv[1], device="cuda", cuda_graph=graph) as session:
        for _ in range(2):
            assert (session(x=x)["output"] == 2 * x).all()
            got = session(x=CudaArray(at_once, x, stream=5))["output"]
            assert (got.numpy() == 2 * x).all()
        why.append(session.why)
        del got
gc.collect()
libcuda = ctypes.CDLL("libcuda.so.1")
libcuda.stub_count.restype = ctypes.c_long
print(json.dumps([why, [libcuda.stub_count(place) for place in range(6)]]))
"""


def stub_of_libcuda(folder: Path) -> dict[str, str]:
    """Make a stub of libcuda in a folder; the environment in which the bindings find it."""
    (folder / "stub.c").write_text(STUB)
    flags = ["-shared", "-fPIC", "-w", "-Wl,-soname,libcuda.so.1", "-o", "libcuda.so.1"]
    subprocess.run(["cc", *flags, "stub.c", "-ldl"], cwd=folder, check=True)
    return os.environ | {"LD_LIBRARY_PATH": str(folder)}


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler for a stub of libcuda")
def test_the_real_bindings_take_what_a_session_calls(engine_bundle: Built, tmp_path: Path) -> None:
    environment = stub_of_libcuda(tmp_path) | {"PYTHONPATH": str(TESTS), "LAYERPORT_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", RUN, str(engine_bundle.path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    (plain, graphs, *again), counts = json.loads(done.stdout)
    assert plain.endswith("runs rtx-sm_89.plan on GPU 0 (Stub GPU, sm_89)")
    assert graphs == plain + ", with CUDA graphs"
    assert again == [plain, graphs]
    assert counts == [0] * 6


ENTER = """
import threading, torch
torch.cuda.device_count = lambda: 2
for name in ("_cuda_getCurrentRawStream", "_cuda_getDevice"):
    if not hasattr(torch._C, name):
        setattr(torch._C, name, lambda *_: 0)
torch._C._dynamo.guards._empty_strided_cuda = torch.empty_strided
from layerport.layers.cuda_operator import Cuda
cuda = Cuda()
def device():
    status, found = cuda.driver.cuCtxGetDevice()
    return int(found) if status == cuda.driver.CUresult.CUDA_SUCCESS else None
def work():
    assert device() is None
    for index in (0, 1, 1, 0):
        cuda.enter(index)
        assert device() == index
for _ in range(2):
    worker = threading.Thread(target=lambda: (work(), seen.append(1)))
    seen = []
    worker.start()
    worker.join()
    assert seen
try:
    cuda.enter(5)
except Exception as error:
    print(error)
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler for a stub of libcuda")
def test_the_real_bindings_change_the_context_before_a_launch(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ENTER], env=stub_of_libcuda(tmp_path), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("cuDeviceGet failed: CUDA_ERROR_INVALID_VALUE")
