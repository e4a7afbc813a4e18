"""Formats of data sets: which one a folder is, and its reader."""

from __future__ import annotations

from pathlib import Path

from spt_deploy.config import Task
from spt_deploy.training.dataset import DataSet
from spt_deploy.training.image_folder import read_image_folder


def read_data(folder: Path, task: Task, format: str | None = None) -> DataSet:
    """Read a data set of any known format; no image is opened.

    Args:
        folder: of the data set.
        task: that it is to be learnt for.
        format: name of the format; None looks at the folder.

    Raises:
        InputError: when the folder cannot be read, or does not suit the task.
    """
    return read_image_folder(folder)
