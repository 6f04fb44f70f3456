"""A process that imports everything once and forks for every call: JAX starts anew in each child.

It reads a request a line, as JSON, and answers with a line. `tests/bandits/conftest.py` speaks to
it.
"""

import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path

import distributed  # noqa: F401
import jax

import bandits.sweeps.cluster  # noqa: F401
from bandits import cli


def start(code, argv, folder):
    """Fork a child that executes the code and then, if there is an argv, the command."""
    pid = os.fork()
    if pid:
        return pid
    status = 70
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.chdir(folder)
        for stream, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(f"{name}.{os.getpid()}", os.O_WRONLY | os.O_CREAT), stream)
        jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
        exec(code, {"__name__": "child"})
        if argv is not None:
            sys.argv = ["modeseek", *argv]
            cli.main()
        status = 0
    except SystemExit as left:
        status = left.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def wait(pid, folder, seconds):
    """The exit code of a child (negative: the signal that ended it) and what it wrote."""
    deadline = time.monotonic() + seconds
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended or time.monotonic() > deadline:
            break
        time.sleep(0.002)
    if not ended:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status) if ended else "too long"
    texts = []
    for name in ("out", "err"):
        path = Path(folder, f"{name}.{pid}")
        texts.append(path.read_text() if path.exists() else "")
        path.unlink(missing_ok=True)
    return [code, *texts]


def main():
    """Answer until the input ends."""
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        print(json.dumps({"start": start, "wait": wait}[name](*arguments)), flush=True)


if __name__ == "__main__":
    main()
