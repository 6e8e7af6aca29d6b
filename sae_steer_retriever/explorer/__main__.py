"""`python -m sae_steer_retriever.explorer` is `sae-steer explore`."""

from __future__ import annotations

import sys

from sae_steer_retriever.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["explore", *sys.argv[1:]]))
