"""Samples and batches: reproducible, whatever reads them; unreadable images are named and left out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from spt_deploy.datasets.dataset import Broken
from spt_deploy.datasets.image_folder import read_image_folder
from spt_deploy.errors import InputError
from spt_deploy.preprocess import Preprocessing
from spt_deploy.training.loader import EpochBatches, Loader, collate
from spt_deploy.training.samples import Key, Sample, Samples
from tests.spt_deploy.training.support import make_image_folder

PREPROCESSING = Preprocessing(size=(64, 64))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_image_folder(tmp_path / "data", train=4, val=2)


def samples(folder: Path, **changes: object) -> Samples:
    return Samples(read_image_folder(folder).train, PREPROCESSING, **({"augment_seed": 0} | changes))  # type: ignore[arg-type]


def sample(of: Samples, epoch: int, place: int) -> Sample:
    got = of[Key(epoch, place)]
    assert isinstance(got, Sample)
    return got


def test_a_sample_depends_on_seed_epoch_and_place_only(folder: Path) -> None:
    first, second = samples(folder), samples(folder, cache_bytes=0)
    for place in (5, 2):
        sample(second, 7, place)  # what was read before does not matter
    assert torch.equal(sample(first, 1, 2).image, sample(second, 1, 2).image)
    assert not torch.equal(sample(first, 1, 2).image, sample(first, 2, 2).image)
    assert not torch.equal(sample(first, 1, 2).image, sample(samples(folder, augment_seed=1), 1, 2).image)


def test_without_augmentation_every_epoch_is_the_same_and_preprocessing_alone(folder: Path) -> None:
    plain = samples(folder, augment_seed=None)
    assert torch.equal(sample(plain, 1, 0).image, sample(plain, 9, 0).image)
    mask = sample(plain, 1, 0).mask
    assert mask is not None
    assert mask.shape == (64, 64)
    assert 0 < mask.float().mean() < 0.3


def test_each_epoch_visits_every_image_once_in_an_order_of_its_own() -> None:
    batches = EpochBatches(count=10, batch=4, shuffle_seed=3)
    orders = []
    for epoch in (1, 2, 1):
        batches.epoch = epoch
        keys = [key for batch in batches for key in batch]
        assert sorted(key.place for key in keys) == list(range(10))
        assert {key.epoch for key in keys} == {epoch}
        orders.append([key.place for key in keys])
    assert orders[0] == orders[2] != orders[1]
    assert [len(batch) for batch in batches] == [4, 4, 2]
    assert len(batches) == 3


def test_workers_give_the_same_batches_as_one_process(folder: Path) -> None:
    alone, shared = (Loader(samples(folder), 5, shuffle_seed=0, workers=workers) for workers in (0, 2))
    for epoch in (1, 2):
        for one, other in zip(alone.epoch(epoch), shared.epoch(epoch), strict=True):
            assert one.paths == other.paths
            assert torch.equal(one.images, other.images)
            assert torch.equal(one.masks, other.masks)
            assert one.image_ids == other.image_ids
            for name in ("boxes", "box_labels", "crowd"):
                ours, theirs = getattr(one, name), getattr(other, name)
                assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_an_unreadable_image_is_left_out_and_named_once(folder: Path) -> None:
    broken_path = folder / "train/green/002.png"
    broken_path.write_bytes(broken_path.read_bytes()[:50])
    told: list[Broken] = []
    loader = Loader(samples(folder), 4, shuffle_seed=0, max_broken=0.05, on_broken=told.append)
    for epoch in (1, 2):
        paths = [path for batch in loader.epoch(epoch) for path in batch.paths]
        assert len(paths) == 11
        assert broken_path not in paths
    assert [b.path for b in told] == [broken_path]
    assert str(broken_path) in told[0].reason


def test_more_unreadable_images_than_allowed_are_an_error_that_names_the_last(folder: Path) -> None:
    for name in ("001.png", "002.png"):
        (folder / "train/red" / name).write_bytes(b"no image")
    with pytest.raises(InputError, match=r"2 of 12 images cannot be read, more than the 5% .*red/00"):
        list(Loader(samples(folder), 4, max_broken=0.05).epoch(1))


def test_a_batch_of_nothing_but_broken_images_is_empty() -> None:
    batch = collate([Broken(Path("a"), "a is broken"), Broken(Path("b"), "b is broken")])
    assert len(batch.images) == len(batch.labels) == len(batch.masks) == 0
    assert len(batch.broken) == 2


def test_reading_batches_draws_nothing_from_the_generator_of_the_model(folder: Path) -> None:
    before = torch.get_rng_state()
    list(Loader(samples(folder), 4, shuffle_seed=0).epoch(1))
    assert torch.equal(torch.get_rng_state(), before)
