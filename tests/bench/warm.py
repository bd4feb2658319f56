"""Runs `waterproof` command lines in forks of one warm process: importing torch costs more than a small run.

Reads one line of JSON for each command, ``[arguments, output file, fork]``; answers with the process id, then with the
exit status (negative for a signal). Each command leads a process group of its own. With ``fork`` the command's worker
processes are forks too, where how they start is not what is tested.
"""

from __future__ import annotations

import json
import os
import sys


def _warm_up() -> None:

    import waterproof.__main__
    import waterproof.bench.dry
    import waterproof.bench.methods.dwt
    import waterproof.bench.run
    import waterproof.datasets.samples
    import waterproof.reports.terminal
    import waterproof.reports.write  # noqa: F401


def _command(arguments: list[str], output: str, fork: bool) -> None:
    import multiprocessing

    from waterproof.__main__ import main
    from waterproof.bench import engine

    if fork:
        engine.get_context = lambda _: multiprocessing.get_context("fork")
    os.setsid()
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.argv = ["waterproof", *arguments]
    code = 70
    try:
        main()
    except SystemExit as end:
        code = end.code or 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _serve() -> None:
    _warm_up()
    while line := sys.stdin.readline():
        arguments, output, fork = json.loads(line)
        child = os.fork()
        if child == 0:
            _command(arguments, output, fork)
        print(child, flush=True)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    _serve()
