"""What a forked child does with sockets that it inherited and must not use."""

from __future__ import annotations

import os
from collections.abc import Iterable


def let_go(descriptors: Iterable[int]) -> None:
    """Give up these descriptors, in the child.

    They are not closed but replaced by /dev/null: the numbers stay taken, so that
    no object that still holds one can close a stranger's later.  And nothing is
    told to the event loop, whose selector the parent goes on using.
    """
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for descriptor in descriptors:
        if descriptor >= 0:
            os.dup2(null, descriptor, inheritable=False)
    os.close(null)
