"""`python -m sae_steer_retriever.train` runs `sae-steer train`.

The command is in the room `cli`, above this one, so it is run as a script and not imported.
"""

import runpy

if __name__ == "__main__":
    runpy.run_module("sae_steer_retriever.cli.train", run_name="__main__")
