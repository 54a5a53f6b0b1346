"""How the garbage collector is set in a process that serves for days."""

import gc


def spare_the_collector() -> None:
    """What was made at start stays: the garbage collector need not look at it again. What comes later is mostly a
    request's or a batch's, and gone before a larger young generation is full.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)
