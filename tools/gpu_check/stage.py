"""A stage: its state while it runs, its JSON file, and its children's output in the common log."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tools.gpu_check import children
from tools.gpu_check.children import Done

# Worst first: a stage has the worst status of its parts. "refused": a tool or a backend cannot run here.
STATUSES = ("failed", "timed out", "refused", "ok")
PLAN = "FDKERNELS_CUDA_PLAN"  # makes native kernels take a schedule, in tests and experiments
UNAVAILABLE = 3  # exit code of a child whose backend cannot run here
NO_SCHEDULE = "no allowed schedule"  # the native backend's error if the forced plan cannot hold a sample
SHORTEST = 3.0  # with fewer seconds left in a stage, no child is started


def last_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1][:160]


@dataclass(frozen=True)
class Options:
    out: Path
    device: str
    budget: float
    """Seconds for each stage."""
    python: str
    tests: tuple[str, ...]
    setting: Mapping[str, Any]


@dataclass
class Stage:
    name: str
    options: Options
    parts: list[dict[str, Any]] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)
    """Further entries of the JSON file, beside the parts."""
    summary: list[str] = field(default_factory=list)
    """Lines that are printed at the end of the run."""
    start: float = field(default_factory=time.monotonic)
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def is_gpu(self) -> bool:
        return self.options.device == "cuda"

    def left(self) -> float:
        return self.options.budget - (time.monotonic() - self.start)

    def has_time(self, name: str, **details: Any) -> bool:
        """Whether a part can still begin; if not, it is recorded as not run."""
        if self.left() >= SHORTEST:
            return True
        self.add(name, "not run", **details)
        return False

    def child(
        self, name: str, command: Sequence[str], *, limit: float | None = None, environment: Mapping[str, str] = {}
    ) -> Done:
        """Run a command within the stage's remaining time, and log its output."""
        left = self.left()
        seconds, whose = (left, "the stage's") if limit is None or left < limit else (limit, "its own")
        # Triton decides at its import whether kernels are compiled or interpreted.
        environment = {"TRITON_INTERPRET": "0" if self.is_gpu else "1", **environment}
        done = children.run(command, seconds, environment, whose)
        variables = " ".join(f"{key}={value}" for key, value in environment.items())
        ended = f"stopped at {done.stopped} limit" if done.stopped else f"exit code {done.code}"
        with self.lock, (self.options.out / "log.txt").open("a") as log:
            log.write(f"\n##### {self.name}: {name}: {ended} after {done.seconds:.1f} s\n")
            log.write(f"$ {variables} {' '.join(command)}\n{done.output}\n")
        return done

    def python(self, name: str, *arguments: str, **options: Any) -> Done:
        return self.child(name, [self.options.python, *arguments], **options)

    def add(self, name: str, status: str, seconds: float = 0.0, text: str = "", **details: Any) -> None:
        """Record a part and print its line, with the last line of `text`, which names the cause."""
        part = {"name": name, "status": status, "seconds": round(seconds, 1), **({"text": text} if text else {})}
        figures = ", ".join(f"{key} {value}" for key, value in details.items() if isinstance(value, int) and value)
        with self.lock:
            self.parts.append({**part, **details})
            self.write(finished=False)
            if status != "not run":
                shown = "; ".join(v for v in (figures, last_line(text)) if v)
                print(f"  {name}: {status}, {seconds:.0f} s{'; ' if shown else ''}{shown}", flush=True)

    def together(self, jobs: Iterable[Callable[[], None]], width: int) -> None:
        """Run jobs, `width` at a time, started in their order."""
        with ThreadPoolExecutor(max(1, width)) as pool:
            try:
                for running in [pool.submit(job) for job in jobs]:
                    running.result()
            except BaseException:  # a signal's exception too: the pool's exit waits for its children
                pool.shutdown(wait=False, cancel_futures=True)
                children.end_all()
                raise

    @property
    def status(self) -> str:
        found = {"timed out" if part["status"] == "not run" else part["status"] for part in self.parts}
        return next((status for status in STATUSES if status in found), "failed")

    def finish(self) -> dict[str, Any]:
        """Write the stage's JSON and return it."""
        with self.lock:
            return self.write(finished=True)

    def write(self, finished: bool) -> dict[str, Any]:
        """Write the stage's JSON as it stands. The file is always complete: the machine may end without notice."""
        result = {
            "stage": self.name, "status": self.status, "finished": finished,
            "seconds": round(time.monotonic() - self.start, 1), "device": self.options.device,
            "setting": self.options.setting, **self.details, "parts": self.parts,
        }  # fmt: skip
        file = self.options.out / f"{self.name}.json"
        part = file.with_suffix(".part")
        part.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
        part.replace(file)
        return result
