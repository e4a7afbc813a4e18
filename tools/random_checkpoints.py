"""Write checkpoints with random weights, to time models that nobody has trained: OUT/NAME.pt for each NAME.

python tools/random_checkpoints.py OUT --imgsz 224 swin_t spt_t

With --keep 0.25 the best quarter of the tokens is kept in every SPA block, whatever the image: OUT/NAME_keep_25.pt.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch

from spt_deploy.config import BackboneConfig, ModelConfig, parse_image_size
from spt_deploy.model.checkpoint import save_checkpoint
from spt_deploy.model.network import SptModel
from spt_deploy.preprocess import Preprocessing

CLASSES = 1000  # ImageNet's count


def main() -> None:
    """Parse the command line and write the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("names", nargs="+", metavar="NAME")
    parser.add_argument("--imgsz", type=parse_image_size, default=(224, 224))
    parser.add_argument("--keep", type=float, metavar="SHARE")
    arguments = parser.parse_args()
    for name in arguments.names:
        torch.manual_seed(0)
        classes = tuple(f"class {i}" for i in range(CLASSES))
        backbone = BackboneConfig.from_name(name)
        if arguments.keep is not None:
            backbone = replace(backbone, selector="topk", keep_ratio=arguments.keep)
            name = f"{name}_keep_{arguments.keep * 100:.0f}"
        model = SptModel(ModelConfig(backbone, "classify", classes))
        save_checkpoint(arguments.out / f"{name}.pt", model, Preprocessing.for_task("classify", arguments.imgsz))


if __name__ == "__main__":
    main()
