"""Promises of cache.streaming.loader: the same batches whoever decodes them, and exact resumption."""

import errno
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from harcache.cache.array_spec import ArraySpec
from harcache.cache.sampling import uniform_sample_test
from harcache.cache.store_paths import shard_path
from harcache.cache.streaming import batch_memory
from harcache.cache.streaming.loader import ClipLoader
from harcache.pipeline.base.errors import HarcacheError
from tests.cache.streaming.small_stores import (
    CLIPS,
    FRAMES,
    KEYPOINTS,
    LENGTHS,
    assert_same,
    copies,
    make,
    row,
    take,
    write_store,
    write_zeros,
)


def _run_program(stores, program, clips=CLIPS, batch_size=2):
    """Start a process of its own that has a training set's ``loader``."""
    given = {name: str(store.path) for name, store in stores.items()}
    text = f"""
import os, time
from pathlib import Path
from harcache import cache
from harcache.cache import ClipDataset, ClipLoader
stores = {{name: cache.open(path) for name, path in {given!r}.items()}}
loader = ClipLoader(ClipDataset({clips!r}, **stores, train=True), {batch_size})
"""
    command = [sys.executable, "-c", text + textwrap.dedent(program)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def _children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_training_samples_keep_both_streams_aligned(stores):
    for batch in copies(ClipLoader(make(stores), 4)):
        seen = batch["rgb"].flatten(2)[:, :, :2]
        drawn = batch["heatmaps"].flatten(2)[:, ::3, :2]
        assert torch.equal(seen, drawn)
        assert (seen[:, :, 0] == batch["index"][:, None]).all()


def test_one_stream_reads_the_frames_that_both_would(stores):
    both = copies(ClipLoader(make(stores), 4))
    for name in stores:
        alone = copies(ClipLoader(make({name: stores[name]}), 4))
        assert alone[0].keys() == {name, "label", "index", "flip"}
        assert_same(alone, [{key: batch[key] for key in alone[0]} for batch in both])


def test_each_epoch_holds_every_clip_once_in_another_order(stores):
    loader = ClipLoader(make(stores), 4)
    epochs = [[i for batch in loader for i in batch["index"].tolist()] for _ in range(3)]
    assert all(sorted(epoch) == list(range(len(CLIPS))) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize(("workers", "prefetch"), [(1, 1), (1, 5), (3, 2), (8, 0), (2, 9)])
def test_batches_depend_on_neither_processes_nor_prefetching(stores, workers, prefetch, again):
    expected = take(ClipLoader(make(stores), 4), 7)
    loader = ClipLoader(make(stores), 4, workers=workers, prefetch=prefetch, again=again)
    assert_same(take(loader, 7), expected)


class _Noted:
    """Both stores of many clips, of which each row that is read leaves a byte in a file."""

    row_shape, dtype = (2,), np.dtype(np.uint8)

    def __init__(self, path):
        self.path = path
        path.touch()

    def rows(self, id):
        return slice(0, 48)

    def reader(self, name):
        return self

    def read_rows(self, rows, out):
        with self.path.open("ab") as file:
            file.write(bytes(len(rows)))


@pytest.mark.parametrize(("again", "batches"), [(False, 3), (True, 5)])
def test_the_next_epoch_is_begun_with_the_last_batches_of_one_where_one_follows(tmp_path, again, batches):
    noted = _Noted(tmp_path / "read")
    loader = ClipLoader(make({"rgb": noted}, clips=[(f"clip{i}", 0) for i in range(12)]), 4, again=again)
    assert len(list(loader)) == 3
    deadline = time.monotonic() + 20
    while noted.path.stat().st_size < batches * 4 * 16:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    list(loader)
    assert noted.path.stat().st_size <= (batches + 3) * 4 * 16


@pytest.mark.parametrize("done", range(8))
def test_training_goes_on_exactly_where_it_stopped(stores, done):
    expected = take(ClipLoader(make(stores), 4), 9)
    stopped = ClipLoader(make(stores), 4, again=True)
    assert_same(take(stopped, done), expected[:done])
    resumed = ClipLoader(make(stores), 4, workers=3, again=True)
    resumed.load_state_dict(pickle.loads(pickle.dumps(stopped.state_dict())))
    assert_same(take(resumed, 9 - done), expected[done:])


def test_the_state_points_to_the_next_epoch_while_the_last_batch_is_worked_on(stores):
    loader = ClipLoader(make(stores), 4)
    states = [loader.state_dict() for _ in loader]
    assert [(state["epoch"], state["batch"]) for state in states] == [(0, 1), (0, 2), (1, 0)]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (lambda stores: ClipLoader(make(stores, seed=1), 4), "made with seed 0 and training now has 1"),
        (lambda stores: ClipLoader(make(stores), 5), "made with batch_size 4 and training now has 5"),
        (lambda stores: ClipLoader(make(stores, clips=CLIPS[1:]), 4), "made with samples 11 and .* 10"),
    ],
)
def test_resuming_with_other_batches_is_refused(stores, changed, message):
    with pytest.raises(HarcacheError, match=message):
        changed(stores).load_state_dict(ClipLoader(make(stores), 4).state_dict())


@pytest.mark.parametrize("again", [False, True])
def test_testing_goes_in_order_and_begins_anew_each_time(stores, again):
    loader = ClipLoader(make(stores, train=False), 4, again=again)
    next(iter(loader))
    for _ in range(2):
        assert [i for batch in loader for i in batch["index"].tolist()] == list(range(len(CLIPS)))


def test_ten_clip_testing_gives_each_clip_ten_samples(stores):
    dataset = make(stores, train=False, views=10)
    batches = copies(ClipLoader(dataset, 16))
    index = torch.cat([batch["index"] for batch in batches])
    assert torch.equal(index, torch.arange(len(CLIPS)).repeat_interleave(10))
    frames = torch.cat([batch["heatmaps"].flatten(2)[:, :, 1] for batch in batches])
    for i, length in enumerate(LENGTHS):
        np.testing.assert_array_equal(frames[i * 10 : i * 10 + 10], uniform_sample_test(length, 48, 10))


@pytest.mark.parametrize(("ranks", "batch_size"), [(2, 4), (3, 9), (4, 8), (6, 6)])
def test_ranks_together_see_each_sample_of_a_batch_exactly_once(stores, ranks, batch_size):
    # Eleven clips: the last batch holds less than a sample a rank, so that some have none.
    whole = ClipLoader(make(stores), batch_size)
    shares = [ClipLoader(make(stores), batch_size, rank=rank, ranks=ranks) for rank in range(ranks)]
    for epoch in range(2):
        taken = [copies(loader) for loader in (whole, *shares)]
        assert [len(batches) for batches in taken] == [len(whole)] * (ranks + 1)
        for number, (batch, *parts) in enumerate(zip(*taken, strict=True)):
            assert len(batch["index"]) == whole.samples_in(number)
            for rank, part in enumerate(parts):
                assert_same([part], [{name: value[rank::ranks] for name, value in batch.items()}])
        assert epoch or sum(len(part["index"]) == 0 for part in parts) == max(0, ranks - len(batch["index"]))


def test_a_batch_stays_whole_until_two_more_are_taken(stores):
    expected = take(ClipLoader(make(stores), 2), 6)
    batches = iter(ClipLoader(make(stores), 2, prefetch=1))
    held = [next(batches), next(batches)]
    assert_same(held, expected[:2])


def test_a_kernel_without_huge_pages_does_too(stores, monkeypatch):
    monkeypatch.setattr(batch_memory, "MADV_HUGEPAGE", 2**20)  # as unknown to the kernel as theirs is
    assert len(list(ClipLoader(make(stores), 4))) == 3


def test_memory_is_used_again(stores):
    loader = ClipLoader(make(stores), 2, prefetch=2)
    places = {batch["rgb"].data_ptr() for _ in range(4) for batch in loader}
    assert len(places) == 4


@pytest.mark.parametrize("again", [False, True])
def test_an_iteration_left_in_the_middle_does_not_spoil_the_next(stores, again):
    expected = take(ClipLoader(make(stores), 2), 8)
    loader, taken = ClipLoader(make(stores), 2, prefetch=4, again=again), []
    left = []
    for _ in range(8):
        left.append(iter(loader))
        taken += copies([next(left[-1])])
    assert_same(taken, expected)


def test_keypoints_take_the_place_of_heatmaps_when_asked(stores, keypoint_store):
    from_volume, from_keypoints = (
        make({**stores, "heatmaps": store}, heatmap_source=source)
        for store, source in ((stores["heatmaps"], "volume"), (keypoint_store, "keypoints"))
    )
    for one, other in zip(ClipLoader(from_volume, 4), ClipLoader(from_keypoints, 4), strict=True):
        assert other.keys() == {"rgb", "keypoints", "label", "index", "flip"}
        assert all(torch.equal(one[name], other[name]) for name in ("rgb", "label", "index", "flip"))
        frames = one["heatmaps"].flatten(2)[..., 1].tolist()
        clips = one["index"].tolist()
        expected = [
            [row(KEYPOINTS, clip, frame) for frame in some] for clip, some in zip(clips, frames, strict=True)
        ]
        np.testing.assert_array_equal(other["keypoints"], expected)


def test_a_damaged_shard_stops_training_with_its_name(tmp_path, stores):
    store = write_store(tmp_path / "rgb.zarr", FRAMES, 256)
    shard = shard_path(tmp_path / "rgb.zarr", FRAMES, 1)
    data = bytearray(shard.read_bytes())
    for place in range(100, len(data) // 2, 500):
        data[place] ^= 1
    shard.write_bytes(data)
    with pytest.raises(HarcacheError, match=r"rgb.zarr.*damaged"):
        list(ClipLoader(make({"rgb": store}), 4))


def test_a_killed_process_ends_training_instead_of_hanging_it(stores):
    loader, others = ClipLoader(make(stores), 2), _children(os.getpid())
    batches = iter(loader)
    next(batches)
    for child in set(_children(os.getpid())) - set(others):
        os.kill(child, signal.SIGKILL)
    with pytest.raises(HarcacheError, match="a process that decodes batches was killed"):
        list(batches)
    # The rest of the epoch, then a whole one.
    assert list(loader)
    assert len(list(loader)) == len(loader)


def test_a_full_dev_shm_is_told_of(stores, monkeypatch):
    def no_room(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("multiprocessing.synchronize._multiprocessing.SemLock", no_room)
    with pytest.raises(
        HarcacheError, match=r"No space left on device.*: their locks take 64 KiB of /dev/shm"
    ):
        next(iter(ClipLoader(make(stores), 2)))


def test_no_process_outlives_a_killed_training(tmp_path, stores):
    training = _run_program(stores, "next(iter(loader)); print('ready', flush=True); time.sleep(60)")
    assert training.stdout.readline() == "ready\n"
    children = _children(training.pid)
    assert len(children) == 2
    training.kill()
    training.communicate()
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{child}").exists() for child in children):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_memory_is_at_most_four_batches_and_none_of_it_in_dev_shm(tmp_path):
    frames = ArraySpec("frames", (224, 224, 3), "uint8", "zstd")
    store = write_zeros(tmp_path / "rgb.zarr", frames, 96)
    # Batches of 77 MB: the stacks and tables of a process are little beside them.
    program = """
        def used():  # by all processes together, without the files that they map
            children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
            lines = [line for pid in ("self", *children)
                     for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()]
            return sum(int(line.split()[1]) for line in lines if line.startswith(("Pss_Anon", "Pss_Shmem")))
        before, most = used(), 0
        for epoch in range(2):
            for batch in loader:
                most = max(most, used())
        # Semaphores lie there, a page each.
        mapped = [line for line in Path("/proc/self/maps").read_text().splitlines() if "/dev/shm" in line]
        ends = [[int(end, 16) for end in line.split()[0].split("-")] for line in mapped]
        print((most - before) * 1024 / sum(value.nbytes for value in batch.values()))
        print(sum(end - start for start, end in ends))
    """
    process = _run_program({"rgb": store}, program, clips=[("clip0", 0)] * 160, batch_size=32)
    batches, in_dev_shm = process.communicate()[0].split()
    assert 3 < float(batches) <= 4.5
    assert int(in_dev_shm) < 100_000


def test_a_batch_that_ranks_cannot_share_is_refused(stores):
    with pytest.raises(HarcacheError, match="multiple of the 3 processes"):
        ClipLoader(make(stores), 4, ranks=3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batches_on_a_gpu_are_those_of_the_cpu_and_stay(stores):
    batches = take(ClipLoader(make(stores), 4), 6)
    loader, kept = ClipLoader(make(stores), 4, device="cuda", prefetch=1), []
    while len(kept) < 6:
        kept += loader
    assert_same([{name: value.cpu() for name, value in batch.items()} for batch in kept], batches)
