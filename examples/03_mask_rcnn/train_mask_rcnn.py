"""Train torchvision's Mask R-CNN on an SPT backbone, with the select loss added: the paper's detector.

    python train_mask_rcnn.py data/scenes --model spt_micro --imgsz 224 --epochs 12

The data is COCO's or any other with boxes that ``spt-deploy train --task detect`` reads. Needs a torchvision that
matches torch; where there is none, this says so in one sentence and ends with exit code 3, as spt-deploy does.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from spt_features import FeaturesWithPyramid, SelectLoss, channels_of
from torch import Tensor, nn

from spt_deploy.config import MODEL_NAMES, BackboneConfig
from spt_deploy.datasets.dataset import Record
from spt_deploy.datasets.formats import read_data
from spt_deploy.datasets.objects import Objects, box_mask
from spt_deploy.errors import RuntimeMissingError, SptError
from spt_deploy.images import read_image
from spt_deploy.model.backbone import Backbone
from spt_deploy.model.checkpoint import load_checkpoint
from spt_deploy.training.box_ap import FoundObjects, ScoredImage, box_average_precision
from spt_deploy.training.optimizer import learning_rate_factor, parameter_groups, set_learning_rate

PYRAMID_WIDTH = 256  # of torchvision's own Mask R-CNN
LARGEST_OVER_IMGSZ = 1333 / 800  # Mask R-CNN's longer side over its shorter one


def make_mask_rcnn(backbone: Backbone, classes: int, imgsz: int) -> nn.Module:
    """Mask R-CNN over a pyramid of strides 4 to 64.

    Args:
        backbone: with any ``spa_stages``.
        classes: without the background.
        imgsz: shorter side of the input in pixels.

    Raises:
        RuntimeMissingError: when torchvision is missing or was built for another torch.
    """
    try:
        from torchvision.models.detection import MaskRCNN
        from torchvision.ops import FeaturePyramidNetwork
        from torchvision.ops.feature_pyramid_network import LastLevelMaxPool
    except (ImportError, RuntimeError) as error:  # a torchvision of another torch fails as it registers its operators
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RuntimeMissingError(
            f"this example needs a torchvision that matches torch {torch.__version__} ({reason}); "
            "install one from where that torch came from"
        ) from error
    pyramid = FeaturePyramidNetwork(channels_of(backbone), PYRAMID_WIDTH, extra_blocks=LastLevelMaxPool())
    features = FeaturesWithPyramid(backbone, pyramid, PYRAMID_WIDTH)
    model: nn.Module = MaskRCNN(
        features, num_classes=classes + 1, min_size=imgsz, max_size=round(imgsz * LARGEST_OVER_IMGSZ)
    )
    return model


def sample_of(record: Record, flip: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
    """One image as torchvision's detectors take it.

    Args:
        record: with objects; crowds are left out.
        flip: mirror left and right.

    Returns:
        3 x H x W float32, RGB in [0, 1]; ``boxes`` n x 4 float32 xyxy in pixels, ``labels`` n int64 from 1, ``masks``
        n x H x W uint8.
    """
    image = read_image(record.path)
    objects = record.objects or Objects.from_boxes([], [])
    size, boxes = (image.shape[0], image.shape[1]), objects.boxes.copy()
    masks = np.zeros((len(objects), *size), dtype=np.uint8)
    for index, mask in enumerate(masks):
        outline = None if objects.outlines is None else objects.outlines[index]
        if outline is None or not outline.draw(mask):
            mask[:] = box_mask(boxes[index : index + 1], size)
    if flip:
        image, masks = image[:, ::-1], masks[:, :, ::-1]
        boxes[:, 0::2] = size[1] - boxes[:, 2::-2]
    chosen = ~objects.crowd
    pixels = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_BGR2RGB).astype(np.float32) / 255
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous(), {
        "boxes": torch.from_numpy(boxes[chosen]),
        "labels": torch.from_numpy(objects.labels[chosen]) + 1,
        "masks": torch.from_numpy(np.ascontiguousarray(masks[chosen])),
    }


def batches(
    records: Sequence[Record], batch: int, random: np.random.Generator, device: torch.device
) -> Iterator[tuple[list[Tensor], list[dict[str, Tensor]]]]:
    """One pass in a random order, each image mirrored every other time."""
    order = random.permutation(len(records))
    for start in range(0, len(order), batch):
        samples = [sample_of(records[i], flip=bool(random.random() < 0.5)) for i in order[start : start + batch]]
        yield (
            [image.to(device) for image, _ in samples],
            [{name: value.to(device) for name, value in target.items()} for _, target in samples],
        )


@torch.no_grad()
def average_precision(model: nn.Module, records: Sequence[Record], device: torch.device) -> dict[str, float]:
    """COCO's average precision of the boxes."""
    model.eval()
    scored = []
    for record in records:
        if record.objects is None:
            continue
        found = model([sample_of(record)[0].to(device)])[0]
        boxes, scores, labels = (found[name].cpu().numpy() for name in ("boxes", "scores", "labels"))
        scored.append(ScoredImage(record.objects, FoundObjects(boxes, scores, labels - 1)))
    return box_average_precision(scored).metrics


def train(options: argparse.Namespace) -> None:
    """The whole example."""
    torch.manual_seed(options.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    data = read_data(options.data, "detect")
    records = [record for record in data.train if record.objects is not None]
    if options.init is None:
        stages = () if options.model.startswith("swin") else options.spa_stages
        backbone = Backbone(BackboneConfig.from_name(options.model, spa_stages=stages))
    else:
        backbone = load_checkpoint(options.init).build().backbone
    model = make_mask_rcnn(backbone, len(data.class_names), options.imgsz).to(device)
    features: Any = model.backbone
    select = SelectLoss(model.transform, features)  # type: ignore[arg-type]
    optimizer = torch.optim.AdamW(parameter_groups(model, weight_decay=0.05, gate_lr_scale=10.0), lr=options.lr)
    random, step = np.random.default_rng(options.seed), 0
    steps = options.epochs * -(-len(records) // options.batch)
    for epoch in range(1, options.epochs + 1):
        model.train()
        for images, targets in batches(records, options.batch, random, device):
            set_learning_rate(optimizer, options.lr * learning_rate_factor(step, steps, warmup=0.05))
            losses = model(images, targets)
            losses["select"] = options.alpha * select()
            loss = sum(losses.values())
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            step += 1
            if step % 20 == 0:
                parts = ", ".join(f"{name.removeprefix('loss_')} {value.item():.3f}" for name, value in losses.items())
                kept = f", kept {features.found.select_ratio.mean().item():.0%}" if features.found.kept else ""
                print(f"epoch {epoch}/{options.epochs}, step {step}/{steps}: {parts}{kept}", file=sys.stderr)
        metrics = average_precision(model, data.val, device)
        print(f"epoch {epoch}: " + ", ".join(f"{name} {100 * value:.1f} %" for name, value in metrics.items()))
        torch.save(model.state_dict(), options.out)


def main() -> int:
    """Parse, train, and turn errors into one sentence."""
    parser = argparse.ArgumentParser(description="Mask R-CNN on an SPT backbone, with the select loss.")
    parser.add_argument("data", type=Path, help="data set with boxes, and masks where it has them")
    parser.add_argument("--model", choices=MODEL_NAMES, default="spt_t")
    parser.add_argument("--spa-stages", type=lambda text: tuple(int(s) for s in text.split(",")), default=(3, 4))
    parser.add_argument("--init", type=Path, help="checkpoint of spt-deploy train or convert, whose backbone to take")
    parser.add_argument("--imgsz", type=int, default=800, help="shorter side of the input, pixels")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--alpha", type=float, default=0.01, help="weight of the select loss")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("mask_rcnn.pt"), help="where the weights go")
    try:
        train(parser.parse_args())
    except SptError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
