"""Packs of the zoo that fail, hang, end or leave something behind while they are imported."""

from __future__ import annotations

from typing import Any

from packs.zoo import PLAIN, VERSION, BrokenPack


def failing(name: str, source: str, said: str, **more: Any) -> BrokenPack:
    """A pack that cannot be imported."""
    return BrokenPack(name, source, said, **more)


def deadly(name: str, source: str, said: str) -> BrokenPack:
    """A pack that no process survives: only `packs --load` can tell."""
    return BrokenPack(name, source, said, ends=True)


def leaving(name: str, line: str, said: str) -> BrokenPack:
    """A pack that loads and changes something of the process, which a build puts back and says."""
    return BrokenPack(name, f"{PLAIN}\n\n{line}\n", said, status="loaded", needed="", exit_code=0)


def raising(name: str) -> str:
    return f"importing {name} raised"


PUT_BACK = "at import, which was put back"
PACKS = (
    failing("zoo_import", "import nowhere_at_all\n", f"{raising('zoo_import')} ModuleNotFoundError: No module named"),
    failing("zoo_syntax", "def broken(:\n", f"{raising('zoo_syntax')} SyntaxError: invalid syntax"),
    failing("zoo_raises", "1 / 0\n", f"{raising('zoo_raises')} ZeroDivisionError: division by zero ("),
    failing("zoo_exit", "raise SystemExit(0)\n", "importing zoo_exit exited with SystemExit: 0 ("),
    failing(
        "zoo_own_base", "class Odd(BaseException): pass\nraise Odd('odd')\n", f"{raising('zoo_own_base')} Odd: odd"
    ),
    failing("zoo_generator_exit", "raise GeneratorExit\n", f"{raising('zoo_generator_exit')} GeneratorExit"),
    failing(
        "zoo_mute",
        "class Mute(Exception):\n    def __str__(self):\n        raise SystemExit(1)\n"
        "    __repr__ = __str__\nraise Mute\n",
        f"{raising('zoo_mute')} Mute: (its __str__ raises SystemExit)",
    ),
    failing(
        "zoo_no_text",
        "class Numb(Exception):\n    def __str__(self):\n        return 5\nraise Numb\n",
        f"{raising('zoo_no_text')} Numb: (its __str__ raises TypeError)",
    ),
    failing(
        "zoo_escapes",
        "raise ValueError('red \\x1b[31m and\\nmore ' + 'x' * 100_000)\n",
        f"{raising('zoo_escapes')} ValueError: red \\x1b[31m and more xxx",
    ),
    failing(
        "zoo_hidden_trace",
        "class Hidden(Exception):\n    @property\n    def __traceback__(self):\n        raise KeyError\n"
        "raise Hidden('here')\n",
        f"{raising('zoo_hidden_trace')} Hidden: here",
    ),
    failing(
        "zoo_cause_of_itself",
        "error = ValueError('round and round')\nerror.__cause__ = error\nraise error\n",
        f"{raising('zoo_cause_of_itself')} ValueError: round and round",
    ),
    failing("zoo_group", "raise ExceptionGroup('two', [ValueError('a'), KeyError('b')])\n", "ExceptionGroup: two"),
    failing("zoo_recursion", "def again():\n    again()\nagain()\n", f"{raising('zoo_recursion')} RecursionError"),
    failing("zoo_stop", "raise StopIteration\n", f"{raising('zoo_stop')} StopIteration"),
    failing(
        "zoo_warning",
        "import warnings\nwarnings.simplefilter('error')\nwarnings.warn('old', DeprecationWarning)\n",
        f"{raising('zoo_warning')} DeprecationWarning: old",
    ),
    failing("zoo_assert", "assert 1 == 2, 'no'\n", f"{raising('zoo_assert')} AssertionError: no"),
    failing("zoo_memory", "bytearray(1 << 62)\n", f"{raising('zoo_memory')} MemoryError"),
    failing("zoo_encoding", "# coding: klingon\n", f"{raising('zoo_encoding')} SyntaxError: "),
    failing("zoo_nul", "x = 1\0\n", f"{raising('zoo_nul')} SyntaxError: source code string cannot contain null bytes"),
    failing("zoo_dtype", "import torch\ntorch.set_default_dtype(torch.float64)\n", "changed Torch's default dtype"),
    failing(
        "zoo_threads", "import torch\ntorch.set_num_threads(7)\n", "importing zoo_threads changed Torch's number of"
    ),
    failing(
        "zoo_circle",
        "import zoo_circle_other\nfrom zoo_circle_other import late\n",
        f"{raising('zoo_circle')} ImportError: cannot import name 'late'",
        files={"zoo_circle_other.py": "import zoo_circle\nzoo_circle.nothing if False else None\n"},
    ),
    failing(
        "zoo_no_such_object",
        PLAIN,
        "has no plugins",
        points="[layerport]\nzoo_no_such_object = zoo_no_such_object:plugins\n",
    ),
    failing(
        "zoo_class",
        "import layerport as lp\n\n\nclass Hooks:\n    @lp.hookimpl\n    def layerport_layers(self):\n"
        "        return ()\n",
        "its entry point names the class Hooks; name an instance of it, or the module",
        points="[layerport]\nzoo_class = zoo_class:Hooks\n",
    ),
    failing(
        "zoo_touchy",
        "class Touchy:\n    def __getattribute__(self, name):\n        raise SystemExit(3)\n\n\nplugin = Touchy()\n",
        "its hooks cannot be read: SystemExit: 3",
        points="[layerport]\nzoo_touchy = zoo_touchy:plugin\n",
    ),
    failing(
        "zoo_lazy",
        "def __getattr__(name):\n    raise RuntimeError('not ' + name)\n",
        "its hooks cannot be read: RuntimeError: not plugin",
        points="[layerport]\nzoo_lazy = zoo_lazy:plugin\n",
    ),
    failing(
        "zoo_listless",
        "class Listless:\n    def __dir__(self):\n        return [1, None]\n\n"
        "    def __hash__(self):\n        raise TypeError('no')\n\n"
        "    def __eq__(self, other):\n        raise TypeError('no')\n\n"
        "    def __bool__(self):\n        raise TypeError('no')\n\n\n"
        "plugin = Listless()\n",
        "its hooks cannot be read: TypeError: ",
        points="[layerport]\nzoo_listless = zoo_listless:plugin\n",
    ),
    failing(
        "zoo_number", "plugin = 7\n", "it implements no hook", points="[layerport]\nzoo_number = zoo_number:plugin\n"
    ),
    failing("zoo_none", "plugin = None\n", "it implements no hook", points="[layerport]\nzoo_none = zoo_none:plugin\n"),
    failing(
        "zoo_other_core",
        PLAIN,
        "zoo-other-core 1.0 takes layerport >=99, and here is ",
        metadata=f"Metadata-Version: 2.1\nName: zoo-other-core\nVersion: {VERSION}\nRequires-Dist: layerport>=99\n",
    ),
    deadly("zoo_endless", "while True:\n    pass\n", "does not finish loading within"),
    deadly("zoo_sleeps", "import time\ntime.sleep(10_000)\n", "does not finish loading within"),
    deadly(
        "zoo_stubborn",
        "import signal, time\nfor one in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM):\n"
        "    signal.signal(one, signal.SIG_IGN)\n"
        "while True:\n    try:\n        time.sleep(1)\n    except BaseException:\n        pass\n",
        "does not finish loading within",
    ),
    deadly("zoo_os_exit", "import os\nos._exit(0)\n", "ends its process with exit code 0, as os._exit does"),
    deadly("zoo_segfault", "import ctypes\nctypes.string_at(0)\n", "crashes its process: signal 11 (SIGSEGV)"),
    deadly("zoo_aborts", "import os\nos.abort()\n", "crashes its process: signal 6 (SIGABRT)"),
    deadly("zoo_kills", "import os\nos.kill(os.getpid(), 9)\n", "crashes its process: signal 9 (SIGKILL)"),
    deadly("zoo_kills_group", "import os\nos.killpg(0, 15)\n", "crashes its process: signal 15 (SIGTERM)"),
    deadly("zoo_interrupts", "raise KeyboardInterrupt\n", "KeyboardInterrupt"),
    deadly("zoo_hog", "held = []\nwhile True:\n    held.append(bytearray(64 << 20))\n", "raised MemoryError"),
    deadly("zoo_forks", f"import os\n{PLAIN}\n\nos.fork()\n", "NAMESPACE::plain"),
    leaving("zoo_prints", "print('hello \\x1b[31m')", "printed to stdout at import: hello \\x1b[31m"),
    leaving("zoo_writes", "import os\nos.write(1, b'from below')", "printed to stdout at import: from below"),
    leaving(
        "zoo_closes", "import sys\nsys.stdout.close(); sys.__stdout__.close()", f"it changed sys.stdout {PUT_BACK}"
    ),
    leaving("zoo_folder", "import os\nos.chdir('/')", f"it changed the working directory {PUT_BACK}"),
    leaving("zoo_sys_path", "import sys\nsys.path.insert(0, '/nowhere')", f"it changed sys.path {PUT_BACK}"),
    leaving(
        "zoo_hooked",
        "import sys\nsys.excepthook = lambda *given: None",
        f"it changed the handling of exceptions (sys.excepthook and the like) {PUT_BACK}",
    ),
    leaving(
        "zoo_signals",
        "import signal\nsignal.signal(signal.SIGTERM, lambda number, frame: None)",
        f"it changed the handling of signals {PUT_BACK}",
    ),
    leaving(
        "zoo_alarm", "import signal\nsignal.setitimer(signal.ITIMER_REAL, 1000)", f"it changed an alarm {PUT_BACK}"
    ),
    leaving(
        "zoo_filters",
        "import warnings\nwarnings.simplefilter('ignore')",
        f"it changed the filters of warnings {PUT_BACK}",
    ),
    leaving("zoo_logging", "import logging\nlogging.basicConfig(level=1)", f"it changed the root logger {PUT_BACK}"),
    leaving("zoo_locale", "import locale\nlocale.setlocale(locale.LC_ALL, 'C')", f"it changed the locale {PUT_BACK}"),
    leaving(
        "zoo_environment",
        "import os\nos.environ['LAYERPORT_STRICT'] = '1'; os.environ['PATH'] = ''",
        f"it changed PATH in os.environ {PUT_BACK}",
    ),
    leaving("zoo_limit", "import sys\nsys.setrecursionlimit(20_000)", f"it changed the recursion limit {PUT_BACK}"),
    leaving("zoo_modules", "import sys\nsys.modules['json'] = sys", f"it changed sys.modules['json'] {PUT_BACK}"),
    leaving("zoo_builtins", "import builtins\nbuiltins.sum = max", f"it changed builtins.sum {PUT_BACK}"),
    leaving("zoo_random", "torch.manual_seed(3)", f"it changed Torch's random state {PUT_BACK}"),
    leaving(
        "zoo_thread",
        "import threading, time\nthreading.Thread(target=time.sleep, args=(2,), name='zoo sleeper').start()",
        "it left a thread running (zoo sleeper), which keeps the process from ending by itself",
    ),
)
