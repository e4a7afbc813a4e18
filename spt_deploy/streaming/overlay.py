"""Drawing an answer over its picture: boxes with labels, the classes of the image, and the selection.

The selection is the paper's figure 5: warm where every SPA block kept the token, cold where it was dropped early. Of
one block alone it is warm where that block kept the token, cold where it did not.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from spt_deploy.config import BackboneConfig
from spt_deploy.errors import UsageError
from spt_deploy.facts import ModelFacts
from spt_deploy.postprocess import Classification, Detection, Prediction
from spt_deploy.preprocess import Preprocessing
from spt_deploy.streaming.frames import Image

PARTS = ("boxes", "selection")

Colour = tuple[int, int, int]  # BGR

# Told apart from each other, from asphalt, grass and sky, and by readers who see red and green alike.
_CLASS_COLOURS: tuple[Colour, ...] = (
    (66, 165, 255),  # amber
    (216, 138, 38),  # azure
    (120, 190, 75),  # leaf
    (122, 72, 236),  # raspberry
    (200, 190, 60),  # turquoise
    (190, 104, 171),  # violet
    (90, 220, 235),  # lemon
    (96, 125, 240),  # coral
    (232, 200, 120),  # sky
    (130, 150, 30),  # petrol
)
_INK: Colour = (28, 24, 20)
_PAPER: Colour = (250, 250, 250)
_HEAT_ALPHA = 0.42  # more hides the picture, less hides the difference of one block
_TURBO_RANGE = (26, 226)  # of 0 to 255; both ends of this colour map go black, which reads as shadow in a picture
_LABEL_ROWS = (-1, -2, 0, 1, 2)  # of a label, from the upper side of its frame on, in the order of preference
_MOST_LINES = 5  # of class labels in the corner


class Drawing(Protocol):
    """Whatever puts an answer over its picture."""

    def draw(self, image: Image, prediction: Prediction, facts: ModelFacts) -> Image:
        """See ``Overlay.draw``."""


@dataclass(frozen=True)
class Overlay:
    """What is drawn.

    Attributes:
        boxes: boxes with label and score; where a model gives classes instead, these, in the corner.
        selection: the heat map and its legend.
        block: the SPA block whose selection it is, ``3.5`` and the like; None for the share of all of them.
    """

    boxes: bool = True
    selection: bool = True
    block: str | None = None

    @classmethod
    def of(cls, parts: Sequence[str]) -> Overlay:
        """``boxes``, ``selection`` or both; nothing, or ``none`` alone, leaves the picture as it is.

        ``selection:3.5`` is the selection of block 3.5 alone.

        Raises:
            UsageError: when a part is unknown, or two selections are named.
        """
        wanted = [part for part in parts if part]
        heads = [part.partition(":")[0] if part.startswith("selection:") else part for part in wanted]
        if wanted != ["none"] and not set(heads) <= set(PARTS):
            raise UsageError(f"overlay is {','.join(parts)!r}; expected {', '.join(PARTS)}, both with a comma, or none")
        selections = {part for part in wanted if part.startswith("selection")}
        if len(selections) > 1:
            raise UsageError(f"overlay is {','.join(parts)!r}; expected one selection: of all blocks, or of one")
        _, colon, block = next(iter(selections), "").partition(":")
        return cls(boxes="boxes" in wanted, selection=bool(selections), block=block if colon else None)

    @property
    def is_selection_alone(self) -> bool:
        """Whether the selection of all blocks is drawn and nothing else, so that without one nothing would be."""
        return self.selection and self.block is None and not self.boxes

    def check(self, backbone: BackboneConfig) -> None:
        """Whether a model has the block, or, where the selection is all that is drawn, any.

        Raises:
            UsageError: when it has not.
        """
        if self.is_selection_alone and not backbone.spa_blocks:
            raise UsageError(f"overlay is selection, and this {backbone.name} selects nothing; use boxes, or none")
        if self.block is None or self.block in backbone.spa_blocks:
            return
        if not backbone.spa_blocks:
            raise UsageError(f"overlay names the SPA block {self.block!r}, and this {backbone.name} has none")
        known = ", ".join(backbone.spa_blocks)
        raise UsageError(f"overlay names the SPA block {self.block!r}; the model's are {known}")

    def draw(self, image: Image, prediction: Prediction, facts: ModelFacts) -> Image:
        """A copy of the picture with the answer over it.

        Args:
            image: H x W x 3 uint8, BGR.
            prediction: of this image.
            facts: of the model; its preprocessing places the selection map in the picture.

        Returns:
            H x W x 3 uint8, BGR. ``image`` is left as it is: it may be a frame that the decoder still refers to.
        """
        selection = self._heat(prediction, facts.preprocessing)
        canvas = image.copy() if selection is None else _heated(image, selection, facts.preprocessing)
        pen = _Pen(canvas)
        if self.boxes:
            pen.boxes(prediction.detections or ())
            shown = 1 if facts.model.task == "classify" else _MOST_LINES  # a classifier's others are also-rans
            pen.corner((prediction.classes or ())[:shown])
        if selection is not None:
            pen.legend(self._kept(prediction))
        return canvas

    def _heat(self, prediction: Prediction, preprocessing: Preprocessing) -> npt.NDArray[np.float32] | None:
        """h x w float32 in [0, 1]; None where nothing is to be drawn, or nothing known."""
        import cv2

        if not self.selection or self.block is None:
            return prediction.selection if self.selection else None
        mask = prediction.masks.get(self.block)
        if mask is None:
            return None
        # A token is kept or not, with nothing between: its square has edges.
        squares = cv2.resize(mask.astype(np.float32), preprocessing.size[::-1], interpolation=cv2.INTER_NEAREST)
        return np.asarray(squares, dtype=np.float32)

    def _kept(self, prediction: Prediction) -> str:
        """The words of the legend."""
        if self.block is not None:
            return f"block {self.block} kept {prediction.masks[self.block].mean():.0%}"
        ratio = prediction.mean_select_ratio
        return "" if ratio is None else f"kept {ratio:.0%}"


class DrawnOnce:
    """A drawing that is made once a frame, however many ask for it one after the other in a thread.

    Args:
        overlay: what is drawn.
    """

    def __init__(self, overlay: Overlay) -> None:
        self._overlay = overlay
        self._last = threading.local()

    def draw(self, image: Image, prediction: Prediction, facts: ModelFacts) -> Image:
        """As ``Overlay.draw``; the picture is shared, and nobody may draw on it."""
        drawn: tuple[Prediction, Image] | None = getattr(self._last, "drawn", None)
        if drawn is None or drawn[0] is not prediction:
            drawn = self._last.drawn = prediction, self._overlay.draw(image, prediction, facts)
        return drawn[1]


def colour_of(label: int) -> Colour:
    """BGR, the same for a class in every picture."""
    return _CLASS_COLOURS[label % len(_CLASS_COLOURS)]


def _heated(image: Image, selection: npt.NDArray[np.float32], preprocessing: Preprocessing) -> Image:
    """The picture under its selection: h x w float32 in [0, 1], covering the model's input."""
    import cv2

    share = preprocessing.map_to_source(np.nan_to_num(selection), (image.shape[0], image.shape[1]))
    return np.asarray(cv2.addWeighted(image, 1 - _HEAT_ALPHA, _heat_of(share), _HEAT_ALPHA, 0), dtype=np.uint8)


def _heat_of(share: npt.NDArray[np.float32]) -> Image:
    """Blue for 0 to red for 1, through green and yellow: h x w float32 to h x w x 3 uint8 BGR."""
    import cv2

    cold, warm = _TURBO_RANGE
    levels = cold + np.clip(share, 0, 1) * np.float32(warm - cold)
    return np.asarray(cv2.applyColorMap(levels.astype(np.uint8), cv2.COLORMAP_TURBO), dtype=np.uint8)


def _words(answer: Detection | Classification) -> str:
    return f"{answer.name} {answer.score:.0%}"


class _Pen:
    """Draws on one picture, in sizes that suit it."""

    def __init__(self, canvas: Image) -> None:
        import cv2

        self._canvas = canvas
        self._height, self._width = canvas.shape[:2]
        side = min(self._height, self._width)
        self._line = max(1, round(side / 320))
        self._text = int(np.clip(round(side / 48), 8, 96))  # height of a capital, pixels; below 8 nobody reads it
        self._stroke = max(1, round(self._text / 11))
        self._font = cv2.FONT_HERSHEY_SIMPLEX
        self._scale = cv2.getFontScaleFromHeight(self._font, self._text, self._stroke)
        self._gap = max(2, round(self._text * 0.45))

    def boxes(self, detections: Sequence[Detection]) -> None:
        """Frames, and labels over them, the best on top; an object that is answered as two classes has both legible.

        Args:
            detections: best first.
        """
        taken = np.zeros((self._height, self._width), dtype=np.bool_)
        corners = [self._corner_of_label(detection, taken) for detection in detections]  # the best chooses first
        for detection in reversed(detections):
            self._frame(detection)
        for detection, corner in zip(reversed(detections), reversed(corners), strict=True):
            self._plate(_words(detection), *corner, colour_of(detection.label))

    def _corner_of_label(self, detection: Detection, taken: npt.NDArray[np.bool_]) -> tuple[int, int]:
        """Where a label goes: above its frame if there is room, else inside, and where no other one is if it can be.

        Args:
            detection: that it is of.
            taken: H x W, where the words of labels are; those of this one are added.
        """
        width, height = self._plate_size(_words(detection))
        x0, y0 = round(detection.box[0]) - self._line // 2, max(0, round(detection.box[1]))
        rows = [y0 + step * height for step in _LABEL_ROWS]
        corners = [self._inside(x0, y, width, height) for y in rows if y >= 0]
        areas = [taken[y : y + height, x : x + width] for x, y in corners]
        chosen = next((index for index, area in enumerate(areas) if not area.any()), 0)
        areas[chosen][self._gap : height - self._gap] = True
        return corners[chosen]

    def _frame(self, detection: Detection) -> None:
        import cv2

        x0, y0, x1, y1 = (round(side) for side in detection.box)
        # A dark line under the coloured one: legible on any ground, the warm end of the heat map among them.
        for line, ink in ((self._line + 2, _INK), (self._line, colour_of(detection.label))):
            cv2.rectangle(self._canvas, (x0, y0), (x1, y1), ink, line)  # upright lines: smoothing would blur them

    def corner(self, classes: Sequence[Classification]) -> None:
        """The classes of the whole picture, one below the other from the upper left."""
        y = self._gap
        for entry in classes:
            self._plate(_words(entry), self._gap, y, colour_of(entry.label))
            y += self._plate_size("X")[1] + max(1, self._gap // 2)

    def legend(self, kept: str) -> None:
        """Lower left: the colours from dropped to kept, and how much was kept, in words."""
        import cv2

        width, height = self._plate_size(kept or "X")
        bar = 6 * self._text
        full = bar + self._gap + (width if kept else self._gap)
        if full + 2 * self._gap > self._width or height + 2 * self._gap > self._height:
            return  # a thumbnail has no room for it
        x, y = self._gap, self._height - self._gap - height
        ground = self._canvas[y : y + height, x : x + full]
        cv2.addWeighted(ground, 0.25, np.full_like(ground, _INK), 0.75, 0, dst=ground)
        ramp = np.linspace(0, 1, bar, dtype=np.float32)[None].repeat(self._text, axis=0)
        top, left = y + self._gap, x + self._gap
        self._canvas[top : top + self._text, left : left + bar] = _heat_of(ramp)
        if kept:
            self._write(kept, x + self._gap + bar, y, height, _PAPER)

    def _plate_size(self, text: str) -> tuple[int, int]:
        import cv2

        (width, _), _ = cv2.getTextSize(text, self._font, self._scale, self._stroke)
        return width + 2 * self._gap, self._text + 2 * self._gap

    def _inside(self, x: int, y: int, width: int, height: int) -> tuple[int, int]:
        """The corner pushed so far that what begins there ends in the picture."""
        return max(0, min(x, self._width - width)), max(0, min(y, self._height - height))

    def _plate(self, text: str, x: int, y: int, colour: Colour) -> None:
        """Text on a plate of ``colour``, pushed into the picture where it would leave it."""
        import cv2

        width, height = self._plate_size(text)
        x, y = self._inside(x, y, width, height)
        cv2.rectangle(self._canvas, (x, y), (x + width - 1, y + height - 1), colour, cv2.FILLED)
        blue, green, red = colour
        light = 0.114 * blue + 0.587 * green + 0.299 * red > 140  # luma: dark ink on light plates
        self._write(text, x, y, height, _INK if light else _PAPER)

    def _write(self, text: str, x: int, y: int, height: int, ink: Colour) -> None:
        import cv2

        base = (x + self._gap, y + (height + self._text) // 2)
        cv2.putText(self._canvas, text, base, self._font, self._scale, ink, self._stroke, cv2.LINE_AA)
