"""The one exception family for errors that a user can fix."""

from __future__ import annotations

import re
from collections.abc import Iterator

from cluster.redact import printable, redact


class PlethoraError(Exception):
    """A mistake or a missing thing that the user can fix.

    ``str(error)`` is one line: what is wrong, where, what to do. Secrets and terminal control characters are
    masked, because the message may quote a stranger's file.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(redact(" ".join(str(message).split()))))


# Ray sends a remote traceback as text if it cannot send the exception chain.
_IN_A_TRACEBACK = re.compile(
    r"(?:^|[\s(])(?:cluster\.errors\.)?PlethoraError(?:: |\(['\"])([^\n]+?)(?:['\"]\))?\s*$", re.M
)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Every exception that `error` contains or was caused by, the outermost first."""
    seen: set[int] = set()
    queue = [error]
    while queue:
        current = queue.pop(0)
        if id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        failures = getattr(current, "worker_failures", None)  # ray.train's TrainingFailedError
        held = [
            getattr(current, "cause", None),  # ray's RayTaskError
            getattr(current, "controller_failure", None),
            *(failures.values() if isinstance(failures, dict) else ()),
            current.__cause__,
            current.__context__,
        ]
        queue += [item for item in held if isinstance(item, BaseException)]


def user_message(error: BaseException) -> str | None:
    """The one-line message of the PlethoraError in `error`'s chain of causes, or None if there is none."""
    chain = list(_chain(error))
    for item in chain:
        # Ray derives a subclass whose str() is the whole remote traceback: accept only the plain class.
        if type(item) is PlethoraError or (isinstance(item, PlethoraError) and not hasattr(item, "cause")):
            return str(item)
    for item in chain:
        found = _IN_A_TRACEBACK.findall(str(item))
        if found:
            return printable(found[-1])
    return None
