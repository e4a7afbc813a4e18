"""How a run went, in one picture: losses, the task's metric, what the blocks kept, and how well they chose."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spt_deploy.atomic import atomic_path
from spt_deploy.errors import RuntimeMissingError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Record = dict[str, Any]

_INK, _FAINT, _GRID = "#2b2f36", "#9aa3ad", "#e6e9ed"
_TRAIN, _VAL, _SELECT = "#9ec1e6", "#1f5fa8", "#c58a1b"
# A hue a stage, from the first block's pale to the last's full; told apart by readers who see red and green alike.
_OF_STAGE = {"1": "#6a51a3", "2": "#238b45", "3": "#1f5fa8", "4": "#d95f0e"}
_PALEST = 0.45  # share of the full colour that a stage's first block has
_DPI = 110
_LABEL_GAP = 4.5  # points of a percentage between two labels beside the curves
_MOST_NAMED = 10  # blocks in a legend


def draw_curves(path: Path, history: Sequence[Record], metric: str, best: int, chance: float | None = None) -> None:
    """Write ``curves.png``.

    Args:
        path: of the picture.
        history: a record an epoch, as in ``metrics.jsonl``; at least one.
        metric: name of the metric that chooses the best epoch, in [0, 1].
        best: number of that epoch: of several with the highest metric it need not be the first.
        chance: what the metric is worth without looking at the image; None where that makes no sense.

    Raises:
        RuntimeMissingError: when matplotlib is not installed.
        OutputError: when the picture cannot be written.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise RuntimeMissingError(
            "curves.png is left out: matplotlib is not installed; pip install 'spt-deploy[train]'"
        ) from error
    selects = bool(history[-1]["val"]["select_ratio"])
    rows = 2 if selects else 1
    figure = Figure(figsize=(11, 3.6 * rows), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, 2, squeeze=False)
    _losses(axes[0, 0], history)
    _metrics(axes[0, 1], history, metric, best, chance)
    if selects:
        _selection(axes[1, 0], history)
        _gates(axes[1, 1], history)
    for axis in axes.flat:
        axis.set_xlabel("epoch", color=_FAINT)
    picture = io.BytesIO()
    figure.savefig(picture, dpi=_DPI, format="png")
    with atomic_path(path) as temporary:
        temporary.write_bytes(picture.getvalue())


def _losses(axis: Axes, history: Sequence[Record]) -> None:
    _frame(axis, "Loss", history)
    _line(axis, history, ("train", "task_loss"), "training", _TRAIN)
    _line(axis, history, ("val", "task_loss"), "validation", _VAL)
    axis.set_ylim(bottom=0)
    handles, labels = axis.get_legend_handles_labels()
    if any(record["val"]["select_loss"] for record in history):
        # Of another size altogether: it gets an axis of its own.
        right = axis.twinx()
        right.spines[["top", "left", "bottom"]].set_visible(False)
        right.spines["right"].set_color(_GRID)
        right.tick_params(colors=_SELECT, length=0)
        _line(right, history, ("val", "select_loss"), "select loss (right)", _SELECT, style=(0, (4, 2)))
        right.set_ylim(bottom=0)
        more = right.get_legend_handles_labels()
        handles, labels = handles + more[0], labels + more[1]
    axis.legend(handles, labels, frameon=False, labelcolor=_INK, fontsize=9)


def _metrics(axis: Axes, history: Sequence[Record], metric: str, best: int, chance: float | None) -> None:
    _frame(axis, f"{metric} in validation, %", history)
    ends: dict[str, float] = {}
    for name, last in history[-1]["val"].items():
        values = [100 * record["val"].get(name, float("nan")) for record in history if isinstance(last, float)]
        if values and name != metric and "loss" not in name:
            axis.plot(_epochs(history), values, color=_FAINT, linewidth=1, marker=_marker(history), markersize=3)
            ends[name] = values[-1]
    height = float("-inf")
    for name, end in sorted(ends.items(), key=lambda item: item[1]):
        height = max(end, height + _LABEL_GAP)
        axis.annotate(name, (_epochs(history)[-1], height), (6, 0), textcoords="offset points", **_small())
    values = [100 * record["val"][metric] for record in history]
    axis.plot(_epochs(history), values, color=_VAL, linewidth=2, marker=_marker(history), markersize=4)
    place = _epochs(history).index(best)
    axis.plot(best, values[place], marker="o", markersize=7, color=_VAL, clip_on=False)
    beside = (6, -18) if place < len(values) / 2 else (-6, -18)
    axis.annotate(
        f"best {values[place]:.1f}",
        (best, values[place]),
        beside,
        textcoords="offset points",
        color=_VAL,
        fontsize=9,
        ha="left" if beside[0] > 0 else "right",
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1},
    )
    if chance is not None:
        axis.axhline(100 * chance, color=_FAINT, linewidth=1, linestyle=(0, (1, 2)))
        axis.annotate("chance", (1, 100 * chance), (6, 0), ("axes fraction", "data"), "offset points", **_small())
    axis.set_ylim(0, 103)


def _selection(axis: Axes, history: Sequence[Record]) -> None:
    _frame(axis, "Tokens kept by each block, and tokens in objects (dotted), %", history)
    blocks = list(history[-1]["val"]["select_ratio"])
    # Of a deep stage the first and the last are named: the shades say the rest.
    named = (
        set(blocks) if len(blocks) <= _MOST_NAMED else {b for b in blocks if b.endswith(".1") or _is_last(b, blocks)}
    )
    for block in blocks:
        values = [100 * record["val"]["select_ratio"].get(block, float("nan")) for record in history]
        axis.plot(
            _epochs(history),
            values,
            color=_shade(block, blocks),
            label=block if block in named else "_",
            marker=_marker(history),
            markersize=3,
        )
    stage_of_stride = {"stride 4": "1", "stride 8": "2", "stride 16": "3", "stride 32": "4"}
    for stride, ratio in history[-1]["val"]["object_ratio"].items():
        colour = _OF_STAGE[stage_of_stride[stride]]
        axis.axhline(100 * ratio, color=colour, linewidth=1.2, linestyle=(0, (1, 1.5)))
    axis.set_ylim(0, 103)
    axis.legend(
        title="block",
        alignment="left",
        loc="upper left",
        bbox_to_anchor=(1.0, 1.0),
        frameon=False,
        labelcolor=_INK,
        fontsize=9,
        title_fontsize=9,
    )


def _gates(axis: Axes, history: Sequence[Record]) -> None:
    _frame(axis, "Gates against the select label, mean over a stage's blocks, %", history)
    if not history[-1]["val"]["gate_recall"]:
        axis.text(0.5, 0.5, "no select labels in the data", transform=axis.transAxes, ha="center", color=_FAINT)
        return
    stages = sorted({block.split(".")[0] for block in history[-1]["val"]["gate_recall"]})
    for stage in stages:
        for name, style in (("recall", "solid"), ("precision", (0, (4, 2)))):
            values = [_stage_mean(record["val"][f"gate_{name}"], stage) for record in history]
            label, colour = f"{name}, stage {stage}", _OF_STAGE[stage]
            axis.plot(
                _epochs(history),
                values,
                color=colour,
                linestyle=style,
                label=label,
                marker=_marker(history),
                markersize=3,
            )
    axis.set_ylim(0, 103)
    axis.legend(frameon=False, labelcolor=_INK, fontsize=9)


def _stage_mean(of_block: dict[str, float], stage: str) -> float:
    values = [100 * value for block, value in of_block.items() if block.split(".")[0] == stage]
    return sum(values) / len(values) if values else float("nan")


def _is_last(block: str, blocks: Sequence[str]) -> bool:
    """Whether a block is the last of its stage."""
    return block == [b for b in blocks if b.split(".")[0] == block.split(".")[0]][-1]


def _shade(block: str, blocks: Sequence[str]) -> tuple[float, float, float]:
    """The stage's colour, mixed with white for its earlier blocks."""
    stage, number = block.split(".")
    count = sum(name.split(".")[0] == stage for name in blocks)
    share = 1.0 if count == 1 else _PALEST + (1 - _PALEST) * (int(number) - 1) / (count - 1)
    full = [int(_OF_STAGE[stage][i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (1 - share * (1 - part) for part in full)
    return red, green, blue


def _frame(axis: Axes, title: str, history: Sequence[Record]) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.set_title(title, loc="left", fontsize=10, color=_INK)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.spines["bottom"].set_color(_FAINT)
    axis.tick_params(colors=_FAINT, length=0)
    axis.grid(axis="y", color=_GRID)
    axis.set_axisbelow(True)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    epochs = _epochs(history)
    axis.set_xlim(epochs[0] - 0.5 * (len(epochs) == 1), epochs[-1] + 0.5 * (len(epochs) == 1))


def _line(
    axis: Axes, history: Sequence[Record], place: tuple[str, str], label: str, colour: str, style: Any = "solid"
) -> None:
    values = [record[place[0]][place[1]] for record in history]
    axis.plot(
        _epochs(history), values, color=colour, label=label, linestyle=style, marker=_marker(history), markersize=3
    )


def _epochs(history: Sequence[Record]) -> list[int]:
    return [record["epoch"] for record in history]


def _marker(history: Sequence[Record]) -> str:
    """Dots while there are few epochs: a single one has no line."""
    return "o" if len(history) <= 12 else ""


def _small() -> dict[str, Any]:
    return {"color": _FAINT, "fontsize": 8, "va": "bottom"}
