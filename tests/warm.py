"""A Python that has imported Torch and layerport before it starts: 6 s of computing less for each that builds a model.

`python()` gives the path of a program that takes the place of `sys.executable` in a command.  It hands its arguments,
environment, folder, input and outputs to a server of this test process, which forks.  Tests of start-up, imports,
signals, hash seeds and of what is written where take `sys.executable`.
"""

from __future__ import annotations

import atexit
import functools
import gc
import io
import json
import os
import runpy
import selectors
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import types
import warnings
from pathlib import Path
from typing import Any, NoReturn

_HEAD = 8  # bytes in which the length of a message is told
_CLIENT = f"""\
import json, os, socket, sys
server = socket.socket(socket.AF_UNIX)
server.connect(PATH)
told = json.dumps([sys.argv[1:], dict(os.environ), os.getcwd()]).encode()
socket.send_fds(server, [len(told).to_bytes({_HEAD}, "little")], [0, 1, 2])
server.sendall(told)
status = int(server.recv(16) or b"70")
if status < 0:
    os.kill(os.getpid(), -status)
os._exit(status)
"""


@functools.cache
def python() -> str:
    """The program, whose server ends with this process."""
    folder = Path(tempfile.mkdtemp(prefix="warm-"))
    address, client = folder / "server", folder / "python"
    client.write_text(f"#!{sys.executable} -IS\nPATH = {str(address)!r}\n{_CLIENT}", encoding="utf-8")
    client.chmod(client.stat().st_mode | stat.S_IXUSR)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(address))
        listening.listen(64)
        # Its input is never written to: it ends where this process does.
        server = subprocess.Popen(
            [sys.executable, "-c", "import warm; warm.serve()", str(listening.fileno())],
            stdin=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"},
            pass_fds=[listening.fileno()],
        )
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    atexit.register(server.communicate)
    return str(client)


def commands(folder: Path) -> str:
    """A search path in which `python` is that program, and `layerport` a command that it runs."""
    (folder / "python").symlink_to(python())
    script = Path(sys.executable).parent / "layerport"
    (folder / "layerport").write_text(f'#!/bin/sh\nexec {python()} {script} "$@"\n', encoding="utf-8")
    (folder / "layerport").chmod(0o755)
    return os.pathsep.join((str(folder), str(script.parent), os.environ.get("PATH", "")))


def _load() -> None:
    """What each build imports, and does once."""
    import onnxruntime  # noqa: F401
    import torch

    import layerport.building  # noqa: F401
    from layerport.search.patterns import patterns_of
    from layerport_builtin_layers.plugin import layerport_layers

    for layer in layerport_layers():
        patterns_of(layer)
    with torch.random.fork_rng([]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(torch.nn.Linear(1, 1), (torch.ones(1, 1),), dynamo=True, verbose=False)


def serve() -> None:
    """Answer on the socket whose number is the first argument, until this process's input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the tests
    sys.path.remove(str(Path(__file__).parent))
    of_python = len(warnings.filters)
    listening = socket.socket(fileno=int(sys.argv[1]))
    _load()
    gc.freeze()
    selector = selectors.DefaultSelector()
    selector.register(sys.stdin.fileno(), selectors.EVENT_READ, None)
    selector.register(listening, selectors.EVENT_READ, None)
    while True:
        for key, _ in selector.select():
            if key.fd == sys.stdin.fileno():
                os._exit(0)
            elif key.fileobj is listening:
                client = listening.accept()[0]
                (head, inherited, _, _) = socket.recv_fds(client, _HEAD, 3)
                arguments, environment, folder = json.loads(_read(client, int.from_bytes(head, "little")))
                process = os.fork()
                if not process:
                    for number, one in enumerate(inherited):
                        os.dup2(one, number)
                    for one in (*inherited, *(entry.fd for entry in selector.get_map().values() if entry.fd)):
                        os.close(one)
                    client.close()
                    _run(arguments, environment, folder, of_python)
                for one in inherited:
                    os.close(one)
                ended = os.pidfd_open(process)
                selector.register(ended, selectors.EVENT_READ, (process, client))
                selector.register(client, selectors.EVENT_READ, (process, ended))
            elif isinstance(key.fileobj, socket.socket):  # the client was killed
                os.kill(key.data[0], signal.SIGKILL)
                selector.unregister(key.fileobj)
            else:
                process, client = key.data
                status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
                selector.unregister(key.fd)
                os.close(key.fd)
                if client in {entry.fileobj for entry in selector.get_map().values()}:
                    selector.unregister(client)
                    client.sendall(str(status).encode())
                client.close()


def _read(client: socket.socket, length: int) -> bytes:
    found = io.BytesIO()
    while found.tell() < length:
        found.write(client.recv(length - found.tell()))
    return found.getvalue()


def _run(arguments: list[str], environment: dict[str, str], folder: str, of_python: int) -> NoReturn:
    """What Python does with its arguments.  of_python: how many filters of warnings it starts with."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    first = [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:] = dict.fromkeys([*first, *sys.path])
    while arguments[0] == "-W":
        sys.warnoptions.append(arguments[1])
        assert arguments[1] == "error", "the only such option that the tests need"
        # Behind those that libraries have set, as they do after Python's start.
        warnings.filterwarnings("error", append=True)
        mine = warnings.filters.pop()  # type: ignore[attr-defined]
        warnings.filters.insert(len(warnings.filters) - of_python, mine)  # type: ignore[attr-defined]
        del arguments[:2]
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    status: Any = 0
    try:
        if arguments[0] == "-m":
            sys.argv = arguments[1:]
            sys.path.insert(0, folder)
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        elif arguments[0] == "-c":
            sys.argv = ["-c", *arguments[2:]]
            sys.path.insert(0, "")
            exec(compile(arguments[1], "<string>", "exec"), vars(main))
        else:
            sys.argv = arguments
            sys.path.insert(0, os.path.dirname(os.path.realpath(arguments[0])))
            main.__file__ = arguments[0]
            exec(compile(Path(arguments[0]).read_bytes(), arguments[0], "exec"), vars(main))
    except SystemExit as error:
        status = error.code
    except Exception as error:
        status = 1
        sys.excepthook(type(error), error, error.__traceback__ and error.__traceback__.tb_next)
    if status is not None and not isinstance(status, int):
        print(status, file=sys.stderr)
        status = 1
    # What Python does at its end, but for the freeing of all that Torch has made, which takes 0.6 s.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status or 0)
