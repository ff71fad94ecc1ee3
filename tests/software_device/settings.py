"""Settings in which a test runs on the software device: architecture, limits, plan and scheduler, chosen by its name.

The tests of a run are spread over all ways (architecture and plan). With FDKERNELS_SOFTWARE_DEVICE=5
(`make software-device`) each test also runs in five other ways, with 11 in all others.
"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from tests.software_device import device

PLANS = ("auto", "cluster:1", "cluster:2", "cluster:4", "cluster:8", "cluster:16", "grid:1", "grid:2")


@dataclass(frozen=True)
class Setting:
    architecture: int
    plan: str
    scheduler: str
    seed: int = 0
    limits: device.Description | None = None

    def __str__(self) -> str:
        return f"sm_{self.architecture} {self.plan} {self.scheduler}"

    @property
    def description(self) -> device.Description:
        """The given limits; without any, limits with enough multiprocessors for the plan's cluster."""
        if self.limits is not None:
            return self.limits
        limits = device.SMALL
        if self.plan.startswith("cluster"):
            limits = device.TIGHT_16 if self.plan in ("cluster:8", "cluster:16") else device.TIGHT
        return limits if self.architecture == 90 else limits._replace(capability=80, largest_cluster=0)

    @contextlib.contextmanager
    def in_force(self, software: device.Software | None = None) -> Iterator[device.Software]:
        """Use this setting inside, with the architecture's library or the given one."""
        software = software or device.software(self.architecture)
        software.use(self.description)
        software.schedule(self.scheduler, self.seed)
        software.count_of_host = self.seed % 2 == 1
        with device.planned(self.plan), software.serves():
            yield software

    def check(self, software: device.Software, may_launch_none: bool = False) -> None:
        """Assert that what ran since `begin` ran on the software device, with this setting's plan."""
        launches, error = software.launches(), software.last_error()
        assert launches or may_launch_none, "nothing was launched on the software device"
        assert error is None, f"an error is left in CUDA's runtime: {error}"
        if self.plan == "auto" or software.fallbacks > 0:
            return
        schedule, _, number = self.plan.partition(":")
        for launch in launches:
            if launch.name.endswith(("_cluster_kernel", "_grid_kernel")):
                assert launch.name.endswith(f"_{schedule}_kernel"), f"{launch} in {self}"
                assert schedule == "grid" or launch.cluster == int(number), f"{launch} in {self}"


# Below compute capability 9.0 a cluster is one block.
WAYS = tuple(
    f"sm_{architecture} {plan}"
    for architecture in (80, 90)
    for plan in PLANS
    if architecture == 90 or plan in ("auto", "cluster:1") or plan.startswith("grid")
)


def setting_of(name: str, column: str) -> Setting:
    """The setting for a test's name; a number in its column says how many ways further."""
    first, _, text = column.partition(": ")
    digest, further = zlib.crc32(name.replace(column, first).encode()), int(text or 0)
    architecture, plan = WAYS[(digest + further) % len(WAYS)].removeprefix("sm_").split()
    scheduler = device.SCHEDULERS[(digest // len(WAYS) + further) % len(device.SCHEDULERS)]
    return Setting(int(architecture), plan, scheduler, (digest >> 8) + further)
