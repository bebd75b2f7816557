"""Python imports this first: it sends this process a signal at a given import after the first one of headroom's own."""

import os
import sys

_NUMBER, _AT = (int(word) for word in os.environ["HEADROOM_SIGNAL"].split())
_PARENT = os.getppid()
_count = -1


def _hear(event: str, arguments: tuple[object, ...]) -> None:
    global _count
    if event == "import" and (_count >= 0 or arguments[0] == "pipeline.cli"):
        _count += 1
        if _count == _AT:
            os.kill(os.getpid(), _NUMBER)


sys.addaudithook(_hear)
