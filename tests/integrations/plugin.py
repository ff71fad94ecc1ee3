"""A pytest plugin for the trainers' own test suites.

FDKERNELS_INTEGRATION=fastgen applies that adapter (or several) before the first test is collected.
FDKERNELS_ABSENT=wandb,timm: where these packages are not installed, they are empty modules. A trainer imports them, but
its losses do not need them.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import os
import sys
import types


class AnyAttribute(type):
    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return Dummy


class Dummy(metaclass=AnyAttribute):
    """What an absent module has under every name: a base class, a decorator, a function."""

    def __init__(self, *args, **kwargs):
        pass

    def __call__(self, *args, **kwargs):
        return args[0] if args else self

    def __class_getitem__(cls, _):
        return cls


class AbsentModule(types.ModuleType):
    __path__: list[str] = []
    __version__ = "0"

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (Dummy,), {})


class Absent(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def __init__(self, names):
        self.names = names

    def find_spec(self, fullname, path=None, target=None):
        if fullname.split(".")[0] in self.names:
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec):
        return AbsentModule(spec.name)

    def exec_module(self, module):
        pass


sys.meta_path.append(Absent(frozenset(os.environ.get("FDKERNELS_ABSENT", "").split(","))))


def pytest_configure():
    for name in os.environ.get("FDKERNELS_INTEGRATION", "").split(","):
        if name:
            importlib.import_module(f"fdkernels.integrations.{name}").apply()
