"""Promises of cache.streaming: the right rows, the same batches whoever reads them, and exact resumption."""

import errno
import itertools
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
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from harcache.cache import streaming
from harcache.cache.clip_store import (
    ArraySpec,
    IndexEntry,
    ShardWriter,
    create_store,
    open_store,
    shard_path,
    write_index,
)
from harcache.cache.heatmaps import draw_heatmaps
from harcache.cache.sampling import uniform_sample_test
from harcache.cache.skeletons import prepare_skeletons
from harcache.cache.streaming import ClipDataset, ClipLoader, constant, prepare
from harcache.pipeline.base.errors import HarcacheError

LENGTHS = [5, 48, 70, 120, 30, 96, 200, 12, 60, 51, 49]
CLIPS = [(f"clip{i}", i % 3) for i in range(len(LENGTHS))]
FRAMES = ArraySpec("frames", (16, 16, 3), "uint8", "zstd")
VOLUME = ArraySpec("volume", (17, 8, 8), "uint8", "blosc")
KEYPOINTS = ArraySpec("keypoints", (2, 17, 3), "float16", "blosc")


def row(spec, clip, frame):
    """A row that says which clip and frame it is, in one corner, over a picture of its own."""
    if spec is KEYPOINTS:
        return np.random.default_rng([clip, frame]).random(spec.shape_of_row, np.float32).astype(np.float16)
    values = np.random.default_rng([clip, frame]).integers(0, 256, spec.shape_of_row, np.uint8)
    values.reshape(-1)[:2] = clip, frame
    return values


def write_store(path, spec, shard_rows, lengths=LENGTHS):
    create_store(path, [spec], shard_rows, {})
    entries, part, start, writer = [], 0, 0, None
    for clip, length in enumerate(lengths):
        if writer is None or start + length > shard_rows:
            if writer is not None:
                writer.close()
                part, start = part + 1, 0
            writer = ShardWriter(shard_path(path, spec, part), spec, shard_rows)
        for frame in range(length):
            writer.append(row(spec, clip, frame))
        entries.append(IndexEntry(f"clip{clip}", part, start, length, range(length), (0, 0, 1, 1), (16, 16)))
        start += length
    writer.close()
    write_index(path, entries)
    return open_store(path)


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores")
    return {
        "rgb": write_store(folder / "rgb.zarr", FRAMES, 256),
        "heatmaps": write_store(folder / "heatmaps.zarr", VOLUME, 400),
    }


def write_zeros(path, spec, rows):
    """A store of one clip that takes no space on disk worth speaking of."""
    create_store(path, [spec], rows, {})
    with ShardWriter(shard_path(path, spec, 0), spec, rows) as writer:
        for _ in range(rows):
            writer.append(np.zeros(spec.shape_of_row, spec.dtype))
    write_index(path, [IndexEntry("clip0", 0, 0, rows, range(rows), (0, 0, 1, 1), (16, 16))])
    return open_store(path)


def _run_program(stores, program, clips=CLIPS, batch_size=2):
    """Start a process of its own that has a training set's ``loader``."""
    given = {name: str(store.path) for name, store in stores.items()}
    text = f"""
import os, time
from pathlib import Path
from harcache import cache
from harcache.cache.streaming import ClipDataset, ClipLoader
stores = {{name: cache.open(path) for name, path in {given!r}.items()}}
loader = ClipLoader(ClipDataset({clips!r}, **stores, train=True), {batch_size})
"""
    command = [sys.executable, "-c", text + textwrap.dedent(program)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def _children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.fixture(scope="module")
def keypoint_store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("keypoints") / "heatmaps.zarr", KEYPOINTS, 400)


def make(stores, train=True, clips=CLIPS, **options):
    return ClipDataset(clips, **stores, train=train, **options)


def copies(batches):
    return [{name: value.clone() for name, value in batch.items()} for batch in batches]


def take(loader, count):
    """The next ``count`` batches, over as many epochs as that takes, each as training sees it."""
    taken = []
    while len(taken) < count:
        taken += copies(itertools.islice(loader, count - len(taken)))
    return taken


def assert_same(some, others):
    assert len(some) == len(others)
    for one, other in zip(some, others, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_test_sample_holds_the_published_frames_of_both_stores(stores):
    dataset = make(stores, train=False)
    for i, length in enumerate(LENGTHS):
        sample, frames = dataset[i], uniform_sample_test(length, 48)[0]
        np.testing.assert_array_equal(sample["rgb"], [row(FRAMES, i, f) for f in frames[::3]])
        np.testing.assert_array_equal(sample["heatmaps"], [row(VOLUME, i, f) for f in frames])
        assert (sample["label"], sample["index"], sample["flip"]) == (i % 3, i, False)


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


def test_samples_change_with_epoch_and_seed_and_not_with_other_clips(stores):
    dataset, fewer = make(stores), make(stores, clips=CLIPS[3:])
    for epoch in range(3):
        assert np.array_equal(dataset.draw(3, epoch)[0], fewer.draw(0, epoch)[0])
    drawn = [dataset.draw(6, 0), dataset.draw(6, 1), make(stores, seed=1).draw(6, 0)]
    assert len({frames.tobytes() for frames, _ in drawn}) == 3


def test_flips_come_as_often_as_asked_and_never_in_testing(stores):
    def share(dataset):
        return np.mean([dataset.draw(i, e)[1] for i in range(len(CLIPS)) for e in range(100)])

    assert 0.4 < share(make(stores)) < 0.6
    assert share(make(stores, flip=0)) == share(make(stores, train=False)) == 0


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
    monkeypatch.setattr(streaming, "MADV_HUGEPAGE", 2**20)  # as unknown to the kernel as theirs is
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


def test_a_store_without_keypoints_is_refused(stores):
    with pytest.raises(HarcacheError, match="no array 'keypoints'"):
        make(stores, heatmap_source="keypoints")


def test_prepared_keypoints_are_heatmaps_mirrored_with_the_frames(stores, keypoint_store):
    dataset = make({"heatmaps": keypoint_store}, heatmap_source="keypoints")
    batch = copies(itertools.islice(ClipLoader(dataset, 2), 1))[0]
    batch["flip"] = torch.tensor([True, False])
    drawn = draw_heatmaps(batch["keypoints"], 28, 1.0)
    # What prepare makes of a volume, which other tests hold, is the measure.
    volume = {**batch, "heatmaps": (drawn * 255).round().to(torch.uint8)}
    expected = prepare({name: value for name, value in volume.items() if name != "keypoints"})
    ready = prepare(batch, heatmap_size=28, sigma=1.0)
    assert ready.keys() == expected.keys()
    assert ready["heatmaps"].stride() == expected["heatmaps"].stride()
    torch.testing.assert_close(ready["heatmaps"], expected["heatmaps"], atol=0.501 / 255, rtol=0)


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


def test_stores_of_other_lengths_are_refused(tmp_path, stores):
    other = write_store(tmp_path / "rgb.zarr", FRAMES, 256, [5, 47, *LENGTHS[2:]])
    with pytest.raises(HarcacheError, match="'clip1' has 47 RGB frames and 48 heatmaps"):
        make({**stores, "rgb": other})


def test_a_clip_that_a_store_does_not_hold_is_refused(stores):
    with pytest.raises(HarcacheError, match="no clip 'other'"):
        make(stores, clips=[("other", 0)])


def test_a_dataset_of_nothing_is_refused(stores):
    with pytest.raises(HarcacheError, match="without clips"):
        make(stores, clips=[])
    with pytest.raises(HarcacheError, match="without stores"):
        make({})


def test_a_batch_that_ranks_cannot_share_is_refused(stores):
    with pytest.raises(HarcacheError, match="multiple of the 3 processes"):
        ClipLoader(make(stores), 4, ranks=3)


def test_prepared_values_are_normalised(stores):
    batch = next(iter(ClipLoader(make(stores, train=False), 2)))
    ready = prepare(batch)
    assert ready.keys() == {"rgb", "heatmaps", "label", "index"}
    mean, std = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])
    expected = ((batch["rgb"].numpy() - mean) / std).transpose(0, 4, 1, 2, 3)
    np.testing.assert_allclose(ready["rgb"], expected, rtol=1e-5, atol=1e-6)
    expected = batch["heatmaps"].numpy().swapaxes(1, 2) / 255
    np.testing.assert_allclose(ready["heatmaps"], expected, rtol=1e-6)
    for name in ("rgb", "heatmaps"):
        frames = ready[name].transpose(1, 2).flatten(0, 1)
        assert frames.dtype == torch.float32
        assert frames.is_contiguous(memory_format=torch.channels_last)


def test_a_flip_mirrors_both_streams_and_swaps_left_and_right(stores):
    batch = copies(itertools.islice(ClipLoader(make(stores), 2), 1))[0]
    plain = prepare({**batch, "flip": torch.tensor([False, False])})
    mixed = prepare({**batch, "flip": torch.tensor([True, False])})
    for name in ("rgb", "heatmaps"):
        assert torch.equal(mixed[name][1], plain[name][1])
    assert torch.equal(mixed["rgb"][0], plain["rgb"][0].flip(-1))
    nose, left_eye, right_eye, *_, left_ankle, right_ankle = range(17)
    for one, other in [(nose, nose), (left_eye, right_eye), (left_ankle, right_ankle)]:
        assert torch.equal(mixed["heatmaps"][0, one], plain["heatmaps"][0, other].flip(-1))
        assert torch.equal(mixed["heatmaps"][0, other], plain["heatmaps"][0, one].flip(-1))


@pytest.mark.skipif(not torch.backends.cuda.is_built(), reason="needs a PyTorch that knows GPUs, but no GPU")
@pytest.mark.parametrize("poses", ["heatmaps", "keypoints", "positions"])
def test_preparing_on_a_gpu_copies_nothing_to_it_that_its_host_would_wait_for(poses):
    copied = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, operator, types, arguments=(), more=None):
            result = operator(*arguments, **(more or {}))
            devices = [value.device.type for value in arguments if isinstance(value, torch.Tensor)]
            if "cpu" in devices and result.device.type == "cuda":
                copied.append(str(operator))
            return result

    batch = {
        "rgb": ((4, 8, 8, 3), torch.uint8),
        "heatmaps": ((12, 17, 8, 8), torch.uint8),
        "keypoints": ((12, 2, 17, 3), torch.float16),
        "positions": ((12, 2, 25, 3), torch.float32),
        "flip": ((), torch.bool),
    }
    ways = {
        "heatmaps": [prepare],
        "keypoints": [prepare, prepare_skeletons],
        "positions": [prepare_skeletons],
    }
    constant.cache_clear()
    try:
        # Says what a GPU would be asked to do, without one.
        with FakeTensorMode():
            there = {
                name: torch.empty((2, *shape), dtype=dtype, device="cuda")
                for name, (shape, dtype) in batch.items()
                if name in ("rgb", "flip", poses)
            }
            for way in ways[poses]:
                way(there)
            with Watch():
                for way in ways[poses]:
                    way(there)
    finally:
        constant.cache_clear()
    assert copied == []


def test_preparing_leaves_the_batch_as_it_was(stores):
    batch = copies(itertools.islice(ClipLoader(make(stores, flip=1), 2), 1))[0]
    before = copies([batch])
    prepare(batch)
    assert_same([batch], before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batches_on_a_gpu_are_those_of_the_cpu_and_stay(stores):
    batches = take(ClipLoader(make(stores), 4), 6)
    loader, kept = ClipLoader(make(stores), 4, device="cuda", prefetch=1), []
    while len(kept) < 6:
        kept += loader
    assert_same([{name: value.cpu() for name, value in batch.items()} for batch in kept], batches)
