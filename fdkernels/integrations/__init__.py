"""Adapters that put fdkernels' functions into other people's trainers, one module for each.

    from fdkernels.integrations import fastgen

    fastgen.apply()          # replaces FastGen's losses; returns their names
    fastgen.applied()        # True
    fastgen.undo()           # puts FastGen's own back
    with fastgen.patched():  # both, for a block
        ...

Nothing happens at import. docs/integrations.md lists what each adapter replaces, what differs, and times.
"""
