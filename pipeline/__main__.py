"""``python -m pipeline`` is ``headroom``."""

from pipeline.cli import main

main()
