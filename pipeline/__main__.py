"""``python -m pipeline`` is ``headroom``."""

import os
import signal

# Until the command line is there, which takes the signal over: nothing has begun that would have to be cleaned up.
if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, lambda number, _frame: os._exit(128 + number))

from pipeline.cli import main

if __name__ == "__main__":
    main()
