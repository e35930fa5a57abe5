"""llama-cpp-python's own server on loopback, for as long as a capture lasts. A process of its own, with a key that
nobody else knows, so that no other program of this machine is answered."""

import importlib.util
import os
import secrets
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import torch

from primekd.config import TeacherConfig
from primekd.foundation import UserError, relative_name
from primekd.models import parse_reference, require_local

NEEDED = ("llama_cpp", "uvicorn", "fastapi", "sse_starlette", "starlette_context", "pydantic_settings")
STARTS_WITHIN = 120  # seconds

# `python -m llama_cpp.server` has no option against repacked weights, with which it crashes on processors with AMX
# (ggml-org/llama.cpp#20824). It ends with its parent, even one that is killed: its input is a pipe that closes then.
SCRIPT = """
import os, sys, threading
def end_with_parent():
    sys.stdin.read()
    os._exit(0)
threading.Thread(target=end_with_parent, daemon=True).start()
import llama_cpp.llama_cpp as library
plain = library.llama_model_default_params
def without_repacking():
    params = plain()
    params.use_extra_bufts = False
    return params
library.llama_model_default_params = without_repacking
from llama_cpp.server.__main__ import main
main()
"""


def start(teacher: TeacherConfig) -> "OwnServer":
    """A server for the GGUF file of a teacher. Raises UserError if it is not here, or as OwnServer."""
    file = require_local(parse_reference(teacher.model))
    return OwnServer(file, teacher.api.model, teacher.context_tokens, teacher.api.logprobs, torch.get_num_threads())


class OwnServer:
    """A running server of a GGUF file called `alias`; `url` and `key` (random if left out) are what a client needs.
    `logprobs`: keeps all tokens' logits, in memory. UserError if a package is missing, or it does not answer."""

    def __init__(self, model: Path, alias: str, context_tokens: int, logprobs: bool, threads: int, key: str = ""):
        if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
            fix = "run `make setup-llamacpp`, or pip install 'llama-cpp-python[server]'"
            raise UserError(f"A server of our own needs {', '.join(missing)}: {fix}.")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url, self.key, self.model = f"http://127.0.0.1:{port}/v1", key or secrets.token_hex(16), model
        options = {
            "model": model, "model_alias": alias, "host": "127.0.0.1", "port": port, "n_ctx": context_tokens,
            "n_threads": threads, "n_threads_batch": threads, "logits_all": logprobs, "verbose": False,
        }  # fmt: skip
        self._words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        self._starting = threading.Lock()
        self._process: subprocess.Popen | None = None
        self.ensure()

    def ensure(self) -> None:
        """Starts the process if there is none, or it has ended. Several threads may call it."""
        with self._starting:
            if self._process and self._process.poll() is None:
                return
            # The key goes by the environment: every user of the machine can read a command line. Ctrl-C is not for it:
            # answers in flight are still waited for.
            self._process = subprocess.Popen(
                [sys.executable, "-c", SCRIPT, *self._words], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL, env=os.environ | {"API_KEY": self.key}, start_new_session=True,
            )  # fmt: skip
            try:
                self._wait()
            except BaseException:
                self.close()
                raise

    def _wait(self) -> None:
        end, name = time.monotonic() + STARTS_WITHIN, relative_name(self.model)
        while time.monotonic() < end:
            try:
                httpx.get(f"{self.url.removesuffix('/v1')}/openapi.json", timeout=5, trust_env=False).raise_for_status()
                return
            except httpx.HTTPError:
                if self._process.poll() is not None:
                    raise UserError(f"The server for {name} ended before it answered: is the file whole?") from None
                time.sleep(0.1)
        raise UserError(f"The server for {name} did not answer within {STARTS_WITHIN} s: run the same command again.")

    def close(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdin.close()
