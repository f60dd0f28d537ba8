"""The one exception family for what a user can fix."""

from __future__ import annotations

import re
from collections.abc import Iterator

from cluster.redact import printable, redact


class PlethoraError(Exception):
    """A mistake or a lack that the person at the keyboard can mend.

    ``str(error)`` is one line: what is wrong, where, what to do about it. Secrets in it are masked, and so is
    what would move a terminal's cursor: it may quote a stranger's file.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(redact(" ".join(str(message).split()))))


# Ray ships a remote traceback as text when it cannot ship the exception chain.
_IN_A_TRACEBACK = re.compile(
    r"(?:^|[\s(])(?:cluster\.errors\.)?PlethoraError(?:: |\(['\"])([^\n]+?)(?:['\"]\))?\s*$", re.M
)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Every exception that `error` holds or came from, the outermost first."""
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
    """The one line of the PlethoraError in `error`'s chain of causes, or None when there is none."""
    chain = list(_chain(error))
    for item in chain:
        # Ray makes a subclass on the fly whose str() is the whole remote traceback: only the plain counts.
        if type(item) is PlethoraError or (isinstance(item, PlethoraError) and not hasattr(item, "cause")):
            return str(item)
    for item in chain:
        found = _IN_A_TRACEBACK.findall(str(item))
        if found:
            return printable(found[-1])
    return None
