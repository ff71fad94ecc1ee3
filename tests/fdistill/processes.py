"""Processes that run the command line and can be killed, forked from one that has loaded the modules already."""

import multiprocessing
import os
import subprocess
import sys

forks = multiprocessing.get_context("forkserver")
LOADED = ["cli", "run", "digits", "gmm", "report"]
forks.set_forkserver_preload([*(f"fdistill.{name}" for name in LOADED), "PIL.Image", "sympy", "torch._dynamo"])


class Program:
    """A process that runs `fdistill` with these arguments.

    Args:
        lines: Python to run first; in it, `at(step, act)` calls act before an iteration, `kill(signal)` kills itself.
        pictures: draw pictures and the report, which take most of the seconds of a tiny run.
    """

    def __init__(self, *arguments, lines="", umask=0o022, pictures=False):
        folder = os.getcwd()
        self.files = [f"{folder}.{os.urandom(4).hex()}.{name}" for name in ("out", "err")]
        self.process = forks.Process(target=_program, args=(folder, self.files, umask, lines, pictures, arguments))
        self.process.start()
        self.pid = self.process.pid

    def kill(self):
        self.process.kill()
        self.process.join()

    def running(self):
        return self.process.is_alive()

    def errors(self):
        if not os.path.exists(self.files[1]):
            return ""
        with open(self.files[1]) as file:
            return file.read()

    def result(self):
        """Exit status (negative: the signal), what was printed, and the program's messages, one per line."""
        done = self.completed()
        assert "Traceback" not in done.stderr, done.stderr
        told = [line for line in done.stderr.splitlines() if line.startswith("fdistill: ")]
        return done.returncode, done.stdout, told

    def completed(self):
        self.process.join(120)
        if self.process.is_alive():
            self.kill()
            raise TimeoutError(self.errors())
        with open(self.files[0]) as file:
            return subprocess.CompletedProcess([], self.process.exitcode, file.read(), self.errors())


def _program(folder, files, umask, lines, pictures, arguments):
    import signal

    import torch

    from fdistill import cli, cpus, plots, report
    from fdistill.trainer import Distiller

    os.umask(umask)
    os.chdir(folder)
    for number, path in enumerate(files, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the fork server ignores it
    torch.set_num_threads(1)
    cpus.tell_if_oversubscribed = lambda: None  # its message depends on what else the machine does
    if not pictures:
        report.build = lambda *_: None
        plots.render = lambda *_: None

    def kill(number=signal.SIGKILL):
        os.kill(os.getpid(), number)

    def at(step, act):
        ahead = Distiller.iteration

        def iteration(self):
            if self.step == step:
                act()
            ahead(self)

        Distiller.iteration = iteration

    exec(lines, {"kill": kill, "at": at, "signal": signal})
    status = cli.main(arguments)
    sys.stdout.flush()
    os._exit(status)
