"""Writes the bundled SAE: `python train/ship.py base/sae` fills `sae_steer_retriever/sae/pretrained/`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from shipment import write_shipment

from sae_steer_retriever.sae.bundled import BUNDLED_FOLDER
from sae_steer_retriever.sae.topk_sae import TopKSAE


def main() -> None:
    """Write the SAE, and print the size of its files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sae", type=Path, help="folder that `sae-steer train` wrote")
    parser.add_argument("--output", type=Path, help="folder to write to (default: the package's own)")
    arguments = parser.parse_args()
    name = TopKSAE.from_pretrained(arguments.sae).config.encoder.name.removeprefix("sentence-transformers/")
    folder = arguments.output or BUNDLED_FOLDER / name
    shipment = write_shipment(arguments.sae, folder)
    for file, size in shipment.sizes.items():
        sys.stdout.write(f"{size / 2**20:8.2f} MiB  {file}\n")
    sys.stdout.write(f"{shipment.size / 2**20:8.2f} MiB  SAE {shipment.sae.fingerprint} in {folder}\n")


if __name__ == "__main__":
    main()
