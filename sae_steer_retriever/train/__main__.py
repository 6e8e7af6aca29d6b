"""`python -m sae_steer_retriever.train` runs the command in the room `cli`, which is above this one."""

import runpy

if __name__ == "__main__":
    runpy.run_module("sae_steer_retriever.cli.train", run_name="__main__")
