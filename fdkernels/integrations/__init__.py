"""Adapters that put fdkernels' functions into other people's trainers, one module for each.

    from fdkernels.integrations import fastgen

    fastgen.apply()          # replaces FastGen's losses; returns their names
    fastgen.applied()        # True
    fastgen.undo()           # puts FastGen's own back
    with fastgen.patched():  # both, for a block
        ...

Nothing happens at import. docs/integrations.md lists what each adapter replaces, what differs, and times.
"""

from __future__ import annotations

import importlib
import pkgutil

from fdkernels.integrations._replacing import Integration


def adapters() -> dict[str, Integration]:
    """Every adapter by the name of its module."""
    names = [module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")]
    return {name: importlib.import_module(f"{__name__}.{name}").INTEGRATION for name in names}
