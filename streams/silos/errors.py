"""Why a load stopped: each a sentence for the person who runs it, with no value of a row in it.

Whichever is raised, the replica keeps its last good image and lookups go on with it.
"""


class SiloError(Exception):
    """A load that changed nothing."""


class SourceUnreadable(SiloError):
    """The source is missing, cut short, not in the declared encoding, or changed while it was read."""


class SchemaDrift(SiloError):
    """The source or the replica no longer has the shape that silo.yaml declares."""


class DeletionGuard(SiloError):
    """More rows would go than the silo allows in one load; a person has to say that this is right."""


class AnotherApplier(SiloError):
    """Another load of this silo is at work, or wrote to it meanwhile."""


class TooSlow(SiloError):
    """The load did not end before its deadline."""
