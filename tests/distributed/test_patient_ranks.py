"""Processes that wait for each other longer than their collectives may take, and look at images together."""

import os
import time
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_fixtures import CLASSIFIER
from process_fixtures import call_on_two_ranks

from scalear.distributed.patient_ranks import ALONE, PatientRanks
from scalear.evaluation.extractors import ClassifierFeatures
from scalear.evaluation.feature_set import FeatureSet, Needs, extract_together
from scalear.evaluation.image_set import ArraySet


def work_together(folder: Path) -> None:
    """What each of two ranks does."""
    place, rank = (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])), int(os.environ["RANK"])
    store = torch.distributed.TCPStore(*place, world_size=2, is_master=rank == 0)
    store.set(str(rank), "here")
    store.wait(["0", "1"])  # on a busy machine one begins late
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timedelta(seconds=1))
    ranks, calls = PatientRanks.connect(), []

    def work_for_long() -> str:
        calls.append(ranks.rank)
        time.sleep(2)
        return "of rank 0"

    assert ranks.first(work_for_long) == "of rank 0"
    assert calls == [0][ranks.rank :]
    time.sleep(2 * ranks.rank)
    assert ranks.gather(10 + ranks.rank) == [[10, 11], None][ranks.rank]
    with pytest.raises(ValueError, match="no number"):  # every rank hears what went wrong on the first
        ranks.first(lambda: int("no number"))
    for batch_size in (4, 100):  # the second leaves a rank without any
        seen = look(batch_size, ranks)
        if ranks.rank == 0:
            torch.save(seen, folder / f"{batch_size}.pt")
        else:
            assert seen == FeatureSet()


def look(batch_size: int, ranks: PatientRanks) -> FeatureSet:
    """Features of ten images."""
    images = np.random.default_rng(0).integers(0, 256, (10, 32, 32, 1), np.uint8)
    needs = Needs(points=frozenset({"pooled"}), statistics=frozenset({"texture"}))
    images = ArraySet(images, np.arange(10), "noise")
    return extract_together(ClassifierFeatures(CLASSIFIER), images, needs, batch_size, ranks=ranks)


@pytest.mark.integration
def test_ranks_wait_for_as_long_as_it_takes_and_share_an_extractors_work(tmp_path):
    call_on_two_ranks(work_together, tmp_path)
    for batch_size in (4, 100):
        whole, shared = look(batch_size, ALONE), torch.load(tmp_path / f"{batch_size}.pt", weights_only=False)
        assert torch.equal(shared.points["pooled"], whole.points["pooled"])
        assert shared.labels.tolist() == list(range(10))
        mine, theirs = shared.statistics["texture"], whole.statistics["texture"]
        torch.testing.assert_close(mine.mean_F, theirs.mean_F, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(mine.covariance_FF, theirs.covariance_FF, rtol=1e-10, atol=1e-12)
        assert mine.count == 10
