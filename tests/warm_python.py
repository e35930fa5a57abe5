"""A Python that has the heavy libraries imported already, for tests whose processes spend most of their time on that.

`start` serves in a process of its own and returns an executable that takes Python's own words (`-m`, `-c`, a script).
What it runs is forked off the server: a process of its own, with the environment, folder, streams and signals of its
caller, and with this executable as its `sys.executable`, so that what it starts is warm too. None of the project's own
modules is imported before. If the caller is killed, what was forked for it is killed, with all that it started.
"""

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path

PRELOADED = (
    "torch", "transformers", "transformers.models.llama.modeling_llama", "transformers.trainer", "peft", "accelerate",
    "safetensors.torch", "pandas", "scipy.stats", "scipy.optimize", "statsmodels.stats.contingency_tables",
    "statsmodels.stats.proportion", "matplotlib.figure", "matplotlib.backends.backend_svg", "pydantic", "typer",
    "jinja2", "papermill", "nbclient", "nbconvert", "ipykernel.kernelapp", "ipykernel.ipkernel", "codecarbon", "gguf",
    "snakemake.cli",
)  # fmt: skip
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
CLIENT = """#!{python} -IS
import json, os, signal, socket, sys
link = socket.socket(socket.AF_UNIX)
link.connect({path!r})
request = json.dumps([sys.argv[1:], dict(os.environ), os.getcwd()]).encode()
socket.send_fds(link, [len(request).to_bytes(8, "big")], [0, 1, 2])
link.sendall(request)
for number in {signals}:
    signal.signal(number, lambda number, frame: link.send(bytes([number])))
status = link.recv(8)
if len(status) < 8:
    os._exit(125)
code = int.from_bytes(status, "big", signed=True)
if code < 0:
    signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
os._exit(code)
"""


def start(folder: Path) -> Path:
    """The executable, in `folder`; the server ends with this process."""
    path, client = folder / "socket", folder / "python"
    client.write_text(CLIENT.format(python=sys.executable, path=str(path), signals=tuple(map(int, FORWARDED))))
    client.chmod(0o755)
    server = subprocess.Popen([sys.executable, __file__, str(path), str(client)], stdin=subprocess.PIPE)
    atexit.register(server.kill)
    while not path.exists():  # from then on requests wait until all is imported
        assert server.poll() is None
        time.sleep(0.01)
    return client


class Server:
    """Forks a process for every request, and tells its end."""

    def __init__(self, path: str, client: str):
        self.client, self.base = client, sys.path[1:]
        self.children: dict[int, socket.socket] = {}
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen(64)
        self.waker, self.wakes = socket.socketpair()
        for end in (self.waker, self.wakes):
            end.setblocking(False)
        signal.set_wakeup_fd(self.wakes.fileno())
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C at the terminal is for the clients
        self.events = selectors.DefaultSelector()
        for source, does in ((self.listener, self.accept), (self.waker, self.reap), (sys.stdin, self.leave)):
            self.events.register(source, selectors.EVENT_READ, does)

    def serve(self) -> None:
        while True:
            for key, _ in self.events.select():
                key.data(key.fileobj)

    def leave(self, source) -> None:
        """Whoever started this has gone."""
        for child in self.children:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)
        os._exit(0)

    def accept(self, listener: socket.socket) -> None:
        link, _ = listener.accept()
        size, streams, *_ = socket.recv_fds(link, 8, 3)
        if len(streams) < 3:  # it was killed before it asked
            link.close()
            return
        request = b""
        while len(request) < int.from_bytes(size, "big"):
            request += link.recv(2**20)
        child = os.fork()
        if child == 0:
            signal.set_wakeup_fd(-1)
            os.setsid()
            self.events.close()
            for mine in (self.listener, self.waker, self.wakes, link, *self.children.values()):
                mine.close()
            become(json.loads(request), streams, self.client, self.base)
        for stream in streams:
            os.close(stream)
        self.children[child] = link
        self.events.register(link, selectors.EVENT_READ, lambda source, child=child: self.hear(source, child))

    def hear(self, link: socket.socket, child: int) -> None:
        """A signal for the child, or the end of its caller."""
        try:
            said = link.recv(1)
        except ConnectionError:
            said = b""
        with contextlib.suppress(ProcessLookupError):
            if said:
                os.kill(child, said[0])
            else:
                self.events.unregister(link)
                os.killpg(child, signal.SIGKILL)

    def reap(self, waker: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError):
            waker.recv(4096)
        with contextlib.suppress(ChildProcessError):
            while (found := os.waitpid(-1, os.WNOHANG))[0]:
                link = self.children.pop(found[0])
                code = os.waitstatus_to_exitcode(found[1])
                with contextlib.suppress(KeyError):
                    self.events.unregister(link)
                with contextlib.suppress(OSError):
                    link.sendall(code.to_bytes(8, "big", signed=True))
                link.close()


def become(request: list, streams: list[int], client: str, base: list[str]) -> None:
    """Turns a fork into the process that was asked for; does not return."""
    words, environment, folder = request
    for place, stream in enumerate(streams):
        os.dup2(stream, place)
        os.close(stream)
    os.environ.clear()
    os.environ.update(environment)
    if "JPY_PARENT_PID" in environment:  # a kernel ends when its parent does, which is the server here
        os.environ["JPY_PARENT_PID"] = str(os.getppid())
    os.chdir(folder)
    for number in (signal.SIGCHLD, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115 - they stay open
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", closefd=False, buffering=1)  # noqa: SIM115
    sys.stdout.reconfigure(write_through=bool(environment.get("PYTHONUNBUFFERED")))
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr
    sys.executable = client
    if "OMP_NUM_THREADS" in environment:
        sys.modules["torch"].set_num_threads(int(environment["OMP_NUM_THREADS"]))
    further = [part for part in environment.get("PYTHONPATH", "").split(os.pathsep) if part]
    code = 1
    try:
        run(words, [*further, *base])
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except KeyboardInterrupt:
        code = 130
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            threading._shutdown()
            atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(BaseException):
                stream.flush()
        os._exit(code & 0xFF)


def run(words: list[str], path: list[str]) -> None:
    """What Python does with these words."""
    while words[0] in ("-u", "-B"):
        words = words[1:]
    if words[0] == "-m":
        sys.argv, sys.path[:] = words[1:], [os.getcwd(), *path]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    elif words[0] == "-c":
        sys.argv, sys.path[:] = ["-c", *words[2:]], ["", *path]
        main = type(sys)("__main__")
        sys.modules["__main__"] = main
        exec(compile(words[1], "<string>", "exec"), main.__dict__)
    else:
        sys.argv, sys.path[:] = words, [str(Path(words[0]).resolve().parent), *path]
        runpy.run_path(words[0], run_name="__main__")


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.disable()
    own = Server(*sys.argv[1:])  # asked from now on; answered when all is imported
    for name in PRELOADED:
        importlib.import_module(name)
    assert threading.active_count() == 1, threading.enumerate()
    assert not any(name.partition(".")[0] == "primekd" for name in sys.modules)
    gc.collect()
    gc.freeze()  # forks neither walk it nor copy it
    gc.enable()
    own.serve()
