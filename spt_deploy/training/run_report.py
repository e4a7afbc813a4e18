"""``report.md`` of a run: what a person reads first.

What was trained on what, what came of it, what to look at, and how to go on.
"""

from __future__ import annotations

import html
import os
import platform
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from spt_deploy.config import ModelConfig
from spt_deploy.datasets.dataset import DataSet, Record
from spt_deploy.model.complexity import PARTS, Complexity, complexity, kept_tokens
from spt_deploy.training.config import TrainConfig
from spt_deploy.training.ranks import resume_command
from spt_deploy.version import __version__
from spt_deploy.wording import counted

_FULL = 0.995  # of the tokens: a selection that drops nothing
_LOW_RECALL = 0.9  # below this, objects lose tokens that attention should have seen
_CLASSES = 20  # in the table of classes
_FAR = 0.05  # between a selection and its label: the paper's own distance is 2 points (IN-S, table 5)


@dataclass(frozen=True)
class RunFacts:
    """What a report tells of.

    Attributes:
        config: of the run.
        model: that was trained.
        data: it was trained on.
        metric: name of the metric that chooses the best epoch, in [0, 1].
        chance: what the metric is worth without looking at the image; None where that makes no sense.
        history: a record an epoch; at least one.
        best: the record of the best epoch.
        alpha: weight that the select loss had.
        device: what computed, in words.
        processes: that trained together.
        samples: pictures and their records.
        has_curves: whether there is a curves.png.
        broken: images left out.
    """

    config: TrainConfig
    model: ModelConfig
    data: DataSet
    metric: str
    chance: float | None
    history: Sequence[dict[str, Any]]
    best: dict[str, Any]
    alpha: float
    device: str
    processes: int
    samples: Sequence[tuple[Path, Record]]
    has_curves: bool
    broken: int

    @property
    def blocks(self) -> dict[str, float]:
        """Select ratio of each SPA block in the best epoch."""
        ratios: dict[str, float] = self.best["val"]["select_ratio"]
        return ratios


def chance_level(task: str, data: DataSet) -> float | None:
    """The metric of one who never looks: the commonest class (top-1), the classes' shares (mAP); none for boxes."""
    if task == "classify":
        labels = [r.label for r in data.val if r.label is not None]
        return max(labels.count(label) for label in set(labels)) / len(labels) if labels else None
    if task == "multilabel":
        shares = [
            sum(label in (r.labels or ()) for r in data.val) / len(data.val) for label in range(len(data.class_names))
        ]
        present = [share for share in shares if share]
        return sum(present) / len(present) if present else None
    return None


def report_text(facts: RunFacts) -> str:
    """The whole report, Markdown."""
    parts = [_title(facts), *_warnings(facts), *_result(facts), *_classes(facts)]
    if facts.blocks:
        parts += [*_selection(facts)]
    parts += [*_work(facts), *_pictures(facts), *_next(facts), *_settings(facts)]
    return "\n\n".join(parts) + "\n"


def warnings_of(facts: RunFacts) -> list[str]:
    """What a user should know before they use the model, a sentence each; the worst first."""
    return list(_warning_sentences(facts))


def _title(facts: RunFacts) -> str:
    config, best = facts.config, facts.best
    value, first = best["val"][facts.metric], facts.history[0]["val"][facts.metric]
    against = [f"{_percent(first)} after epoch 1"] if best["epoch"] > 1 else []
    against += [] if facts.chance is None else [f"{_percent(facts.chance)} without looking at the image"]
    beside = f" ({', '.join(against)})" if against else ""
    return (
        f"# {config.out.name}\n\n`{config.model}` for {config.task} on `{config.data}`: **{facts.metric} "
        f"{_percent(value)}** in epoch {best['epoch']} of {config.epochs}{beside}."
    )


def _warnings(facts: RunFacts) -> Iterator[str]:
    sentences = warnings_of(facts)
    if sentences:
        yield "\n".join(f"> **Note:** {sentence}\n>" for sentence in sentences).removesuffix("\n>")


def _warning_sentences(facts: RunFacts) -> Iterator[str]:
    config, val = facts.config, facts.best["val"]
    done, ratios = len(facts.history), facts.blocks
    if done < config.epochs:
        yield f"The run stopped after {done} of {config.epochs} epochs; see below how to go on with it."
    if facts.chance is not None and val[facts.metric] <= facts.chance:
        yield f"This is no better than never looking ({_percent(facts.chance)}): train longer, or with another --lr."
    if facts.data.in_both:
        images = counted(facts.data.in_both, "validation image is", "validation images are")
        yield f"{images} in the training split, too: these metrics do not tell what the model makes of others."
    if config.select_from_labels and ratios:
        yield (
            "Labels took the place of the selection (--select-from-labels), in these numbers, too. A deployed model "
            "has no labels: it selects with its gates, as it did for the samples below."
        )
    elif ratios:
        yield from _selection_warnings(facts, ratios)
    if facts.broken:
        what = counted(facts.broken, "unreadable image or annotation was", "unreadable images or annotations were")
        yield f"{what} left out; the run said why."
    if done == config.epochs and facts.best["epoch"] == done > 1:
        yield "The last epoch was the best: more epochs may give more."


def _selection_warnings(facts: RunFacts, ratios: dict[str, float]) -> Iterator[str]:
    val = facts.best["val"]
    if min(ratios.values()) >= _FULL:
        remedy = (
            "the data does not say where objects lie, so nothing taught the gates; add boxes or masks"
            if not facts.alpha
            else f"raise --alpha (it was {facts.alpha:g}) or --gate-lr-scale, or train longer"
        )
        yield f"Every SPA block kept every token, so selection saves nothing: {remedy}."
        return
    if max(ratios.values()) == 0:
        yield "No SPA block kept any token, so their attention is off: lower --alpha, or look at the select labels."
    if not facts.alpha:
        yield "The select loss was off (alpha 0): nothing but the task taught the gates what to keep."
    lost = {block: recall for block, recall in val["gate_recall"].items() if recall < _LOW_RECALL}
    if lost:
        worst = min(lost, key=lambda block: lost[block])
        drop = "drops" if len(lost) == 1 else "drop"
        yield (
            f"{len(lost)} of {len(ratios)} blocks {drop} tokens that lie in objects (block {worst} keeps only "
            f"{_percent(lost[worst])} of them): train longer, or lower --threshold (it was {facts.config.threshold:g})."
        )
    objects = _object_ratio_of_blocks(facts)
    more = [ratios[block] - objects[block] for block in ratios if block in objects]
    if more and sum(more) / len(more) > _FAR:
        yield (
            f"The blocks keep {100 * sum(more) / len(more):.0f} points more than lies in objects: a larger --alpha "
            f"(it was {facts.alpha:g}), a larger --gate-lr-scale or more epochs bring them closer."
        )


def _result(facts: RunFacts) -> Iterator[str]:
    first, last = facts.history[0], facts.history[-1]
    best = facts.best["epoch"]
    shown = {record["epoch"]: record for record in (first, facts.best, last)}
    names = [facts.metric, *(n for n, v in facts.best["val"].items() if isinstance(v, float) and n != facts.metric)]
    rows = [["", *(f"epoch {epoch}{' (best)' if epoch == best else ''}" for epoch in shown)]]
    for name in names:
        values = [record["val"].get(name) for record in shown.values()]
        rows.append([name, *(_number(name, value) for value in values)])
    rows.append(["training loss", *(f"{record['train']['loss']:.3f}" for record in shown.values())])
    yield "## Result\n\n" + _table(rows)


def _classes(facts: RunFacts) -> Iterator[str]:
    by_class = sorted(facts.best["val"].get("per_class", {}).items(), key=lambda item: item[1])
    if len(by_class) < 2:  # one alone is the result
        return
    of = "objects" if facts.config.task == "detect" else "images"
    counts = [_counts(records, facts.data.class_names, of) for records in facts.data.splits.values()]
    rows = [["class", facts.metric.removeprefix("m"), f"training {of}", f"validation {of}"]]
    for name, value in by_class[:_CLASSES]:
        rows.append([name.replace("|", "&#124;"), _percent(value), *(str(count[name]) for count in counts)])
    which = "the lowest first" if len(by_class) <= _CLASSES else f"the {_CLASSES} lowest of {len(by_class)}"
    yield f"## Classes\n\nOf the best epoch, {which}.\n\n" + _table(rows)


def _counts(records: Sequence[Record], names: Sequence[str], of: str) -> Counter[str]:
    """By class, the ``objects`` that are to be found, or the ``images`` that have it."""
    counts: Counter[str] = Counter()
    for record in records:
        found = (record.labels or ()) if record.label is None else (record.label,)
        if of == "objects":
            found = () if record.objects is None else record.objects.labels[~record.objects.crowd].tolist()
        counts.update(names[label] for label in found)
    return counts


def _selection(facts: RunFacts) -> Iterator[str]:
    val, objects = facts.best["val"], _object_ratio_of_blocks(facts)
    rows = [["block", "tokens kept", "tokens in objects", "precision", "recall"]]
    for block, ratio in facts.blocks.items():
        cells = [objects.get(block), val["gate_precision"].get(block), val["gate_recall"].get(block)]
        rows.append([block, _percent(ratio), *("" if cell is None else _percent(cell) for cell in cells)])
    yield (
        "## Selection\n\nOf the best epoch, in validation. A token is in an object if any of its pixels is; precision "
        "is the share of kept tokens that are, recall the share of those that are kept.\n\n" + _table(rows)
    )


def _work(facts: RunFacts) -> Iterator[str]:
    size, backbone = facts.config.imgsz, replace(facts.model.backbone, packing="per-image")
    kept = kept_tokens(backbone, size, list(facts.blocks.values()))
    here = complexity(replace(facts.model, backbone=backbone), size, kept)
    if not facts.blocks:
        yield f"## Work\n\n{_giga(here.total.macs)} GMACs an image of {size[0]} x {size[1]} pixels."
        return
    swin = complexity(replace(facts.model, backbone=replace(backbone, spa_stages=())), size)
    rows = [["GMACs an image", "this model", "Swin", "ratio"]]
    for part in [p for p in PARTS if here.of(part=p).macs or swin.of(part=p).macs]:
        rows.append([part, *_compared(here, swin, part)])
    rows.append(["**all**", *_compared(here, swin, None)])
    saved = 1 - here.total.macs / swin.total.macs
    says = f"{_percent(saved)} less work than" if saved >= 0 else f"{_percent(-saved)} more work than"
    yield (
        f"## Work\n\n{says} the Swin of the same size, at {size[0]} x {size[1]} pixels and the select ratios above. "
        "Counted as executed: Swin pads every map to whole windows, an SPA block has only tokens.\n\n" + _table(rows)
    )


def _pictures(facts: RunFacts) -> Iterator[str]:
    if facts.has_curves:
        yield "## Curves\n\n![Losses, metric, selection and gates by epoch](curves.png)"
    if not facts.samples:
        return
    cells = []
    for path, record in facts.samples:
        name = f"samples/{path.name}"
        truth = html.escape(_truth(record, facts.data)).replace("|", "&#124;")  # in a table's cell
        cells.append(f'<img src="{name}" width="224" alt="{path.stem}"><br>{truth}')
    columns = min(4, len(cells))
    cells += [""] * (-len(cells) % columns)
    rows = [[""] * columns, *(cells[i : i + columns] for i in range(0, len(cells), columns))]
    legend = "Warm where every SPA block kept the token, cold where it was dropped early. " if facts.blocks else ""
    yield f"## Samples\n\nOf the validation images, by the best epoch. {legend}Below each, the truth.\n\n{_table(rows)}"


def _next(facts: RunFacts) -> Iterator[str]:
    out, images = facts.config.out, _folder_of(facts.data.val)
    model = shlex.quote(str(out / "best.onnx"))
    best = shlex.quote(str(out / "best.pt"))
    lines = [f"spt-deploy export {best}", f"spt-deploy validate {best} {model} --data {images}"]
    lines += [f"spt-deploy infer {images} --model {model}"]
    if len(facts.history) < facts.config.epochs:
        lines.insert(0, resume_command(out))
    yield "## How to go on\n\n" + "\n".join(f"    {line}" for line in lines)


def _settings(facts: RunFacts) -> Iterator[str]:
    config, data = facts.config, facts.data
    seconds = sum(record.get("seconds", 0.0) for record in facts.history)
    speed = facts.history[-1]["train"]["images_per_second"]
    step = config.batch * config.accumulate * facts.processes
    classes = counted(len(data.class_names), "class", "classes")
    rows = [
        ["data", f"{len(data.train)} training and {counted(len(data.val), 'validation image')}, {classes}"],
        ["input", f"{config.imgsz[0]} x {config.imgsz[1]} pixels, {counted(step, 'image')} a step"],
        ["start", "random weights" if config.init is None else f"`{config.init}`"],
        ["time", f"{_duration(seconds)}, {speed:.0f} images/s in the last epoch"],
        ["on", facts.device + (f", {facts.processes} processes" if facts.processes > 1 else "")],
        ["versions", f"spt-deploy {__version__}, torch {torch.__version__}, Python {platform.python_version()}"],
    ]
    default = TrainConfig(data=config.data, out=config.out).to_dict()
    changed = {
        k: v for k, v in config.to_dict().items() if v != default[k] and k not in ("data", "out", "init", "imgsz")
    }
    if changed:
        rows.append(["not the default", ", ".join(f"{name} {value}" for name, value in changed.items())])
    yield "## How it was made\n\n" + _table([["", ""], *rows]) + "\n\nAll settings are in `config.json`."


def describe_device(device: torch.device) -> str:
    """What computes, in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({platform.machine()}, {counted(torch.get_num_threads(), 'thread')})"


def _object_ratio_of_blocks(facts: RunFacts) -> dict[str, float]:
    by_stride: dict[str, float] = facts.best["val"]["object_ratio"]
    ratios = {block: by_stride.get(f"stride {2 ** (int(block.split('.')[0]) + 1)}") for block in facts.blocks}
    return {block: ratio for block, ratio in ratios.items() if ratio is not None}


def _truth(record: Record, data: DataSet) -> str:
    if record.label is not None:
        return data.class_names[record.label]
    if record.objects is not None:
        return counted(len(record.objects), "object")
    return ", ".join(data.class_names[label] for label in record.labels or ())


def _folder_of(records: Sequence[Record]) -> str:
    return shlex.quote(os.path.commonpath([record.path.parent for record in records]))


def _compared(here: Complexity, swin: Complexity, part: str | None) -> list[str]:
    one, other = here.of(part=part).macs, swin.of(part=part).macs
    return [_giga(one), _giga(other), f"{one / other:.2f}" if other else ""]


def _table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([head, "|" + "---|" * len(rows[0]), *body])


def _number(name: str, value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.3f}" if "loss" in name else _percent(value)


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _giga(macs: int) -> str:
    return f"{macs / 1e9:.3f}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
