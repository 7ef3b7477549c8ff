"""No bit of a cache changes unseen: damage is named with its clips, repaired alone, and stops training."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from harcache import cache
from harcache.cache.clip_index import IndexEntry
from harcache.cache.errors import CacheError
from harcache.cache.group_metadata import read_attributes, write_attributes
from harcache.cache.store_writer import write_index
from harcache.cache.streaming.dataset import ClipDataset
from harcache.cache.streaming.loader import ClipLoader
from harcache.cli import main
from harcache.commands import verify
from harcache.commands.inspect import digests
from harcache.pipeline.base.errors import HarcacheError, NewerFormatError
from harcache.pipeline.params import DatasetParams
from harcache.pipeline.work.engine import Engine
from harcache.pipeline.work.parts import dataset_lock, read_record, record_path
from harcache.stages import crop, detect, heatmap, index, pose, rgb, train
from harcache.stages.shared import units as building
from harcache.stages.shared.workspace import Workspace
from tests.footage import FRAMES, add_video, build, film
from tests.tiny_demo import copy_of

_STAGES = {"index": index, "detect": detect, "pose": pose, "crop": crop, "heatmap": heatmap, "rgb": rgb}
_Demo = tuple[DatasetParams, Workspace]


@pytest.fixture(scope="module")
def whole(
    demo: Workspace, params: DatasetParams, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[_Demo]:
    """The tiny demo in parts of few clips, so that a part has neighbours; tests put back what they damage."""
    workspace = copy_of(demo, tmp_path_factory.mktemp("whole"))
    few = replace(
        params,
        heatmap=replace(params.heatmap, shard_rows=64),
        rgb=replace(params.rgb, shard_rows=64),
    )
    with pytest.MonkeyPatch.context() as patch:
        for stage in (detect, pose):
            patch.setattr(stage, "Parts", partial(building.Parts, capacity=2))
        for folder in (workspace.detections, workspace.poses):
            shutil.rmtree(folder)
        _run(_STAGES, few, workspace)
        yield few, workspace


def _run(stages: "list[str] | dict[str, object]", params: DatasetParams, workspace: Workspace) -> None:
    with Engine(workers=0) as engine:
        for name in stages:
            _STAGES[name].run(params, workspace, engine)  # type: ignore[attr-defined]


def _command(workspace: Workspace, monkeypatch: pytest.MonkeyPatch, *options: str) -> Result:
    """Run ``harcache cache verify`` in the workspace's project."""
    monkeypatch.chdir(workspace.data.parent.parent)
    return CliRunner().invoke(main, ["cache", "verify", workspace.dataset, *options], prog_name="harcache")


def _files(workspace: Workspace) -> dict[str, list[Path]]:
    """All files of the caches, by kind."""
    data = workspace.data
    found = {
        "shard": [*data.glob("*.zarr/*/c.*")],
        "record": [*data.glob("*/part-*.json"), *data.glob("*.zarr/records/part-*.json")],
        "index": [*data.glob("*.zarr/**/zarr.json"), *data.glob("*.zarr/*/c/**/*")],
        "HDF5": [*data.glob("*/part-*.h5")],
        "table": [*data.glob("*.csv"), *data.glob("failures/*.csv"), *data.glob("counts/*.json")],
    }
    return {kind: sorted(path for path in paths if path.is_file()) for kind, paths in found.items()}


def _damage(path: Path, rng: np.random.Generator) -> str:
    content = bytearray(path.read_bytes())
    how = str(rng.choice(["flip", "cut", "delete"]))
    if how == "delete":
        path.unlink()
    elif how == "cut":
        path.write_bytes(content[: rng.integers(len(content))])
    else:
        bit = int(rng.integers(8 * len(content)))
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)
    return how


def _part_of(path: Path) -> tuple[Path, int]:
    """The folder of records and the number of the part that a shard, record or HDF5 file belongs to."""
    part, shard = re.findall(r"part-(\d+)|c\.(\d+)", path.name)[0]
    return (path.parent.parent / "records" if shard else path.parent), int(part or shard)


def _clips_of(path: Path, kind: str, all_clips: set[str]) -> set[str]:
    """The clips that a file concerns, as its part's record tells."""
    if kind in ("index", "table"):
        return {"none"} if path.parent.name in ("failures", "counts") else all_clips
    folder, part = _part_of(path)
    record = json.loads((folder / f"part-{part:05d}.json").read_text())
    return {outcome["id"] for outcome in record["outcomes"]}


# 300 times a run of the command over 60 files, on a dataset that the networks must build first.
@pytest.mark.slow
def test_each_of_300_random_damages_is_found_with_its_file_and_clips(
    whole: _Demo, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, workspace = whole
    all_clips = set(cache.open(workspace.rgb).ids)
    files = _files(workspace)
    assert _command(workspace, monkeypatch).exit_code == 0
    rng = np.random.default_rng(1)
    for _ in range(300):
        kind = str(rng.choice(list(files)))
        path = files[kind][rng.integers(len(files[kind]))]
        content, concerned = path.read_bytes(), _clips_of(path, kind, all_clips)
        how = _damage(path, rng)
        result = _command(workspace, monkeypatch)
        path.write_bytes(content)
        lines = result.stdout.splitlines()
        assert result.exit_code == 1, (how, path)
        assert len(lines) == 1 and lines[0].startswith(f"{path.relative_to(Path.cwd())}: "), (
            how,
            path,
            lines,
        )
        named = set(lines[0].rpartition("clips: ")[2].split(", "))
        assert named and (named <= concerned if kind == "shard" else named == concerned), (how, path, lines)
    assert _command(workspace, monkeypatch).exit_code == 0


def _state(workspace: Workspace) -> dict[Path, tuple[int, int]]:
    """The identity of every file of a part."""
    files = _files(workspace)
    paths = [*files["shard"], *files["record"], *files["HDF5"]]
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in paths}


# Makes 32 parts again, by the networks where they are boxes or poses.
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["shard", "record", "index", "HDF5", "table"])
def test_repair_makes_only_the_damaged_part_again_with_the_same_bytes(
    whole: _Demo, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    params, workspace = whole
    paths = _files(workspace)[kind]
    contents = {path: path.read_bytes() for files in _files(workspace).values() for path in files}
    before = digests(workspace)
    rng = np.random.default_rng(2)
    for _ in range(8):
        path = paths[rng.integers(len(paths))]
        state = _state(workspace)
        _damage(path, rng)
        result = _command(workspace, monkeypatch, "--repair")
        assert result.exit_code == 0, result.output
        _run(re.findall(r"harcache (.+) makes it again", result.stdout)[0].split(", "), params, workspace)
        assert _command(workspace, monkeypatch).exit_code == 0
        changed = {_part_of(file) for file, identity in _state(workspace).items() if identity != state[file]}
        assert changed == (set() if kind in ("index", "table") else {_part_of(path)})
        assert {file: file.read_bytes() for file in contents} == contents
    assert digests(workspace) == before


@pytest.fixture
def small(tmp_path: Path, params: DatasetParams) -> _Demo:
    """Six clips in the three shards of rgb.zarr; no other cache."""
    return film(tmp_path, params)


def _shard(workspace: Workspace, part: int) -> Path:
    return workspace.rgb / "frames" / f"c.{part}.0.0.0"


def _flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def test_whole_caches_are_whole(small: _Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    result = _command(small[1], monkeypatch)
    assert (result.exit_code, result.stdout) == (0, "small: 27 files are as they were written\n")


def test_a_flipped_bit_in_a_row_names_the_clip_of_that_row_alone(small: _Demo) -> None:
    _, workspace = small
    index = np.frombuffer(_shard(workspace, 1).read_bytes()[-4 - 16 * 2 * FRAMES : -4], "<u8").reshape(-1, 2)
    for row, clip in ((0, "even__clip4"), (FRAMES - 1, "even__clip4"), (FRAMES, "odd__clip1")):
        _flip(_shard(workspace, 1), int(index[row, 0]) + 7)
        (problem,) = verify.verify(workspace).problems
        assert (problem.file, problem.clips) == (_shard(workspace, 1), (clip,))
        _flip(_shard(workspace, 1), int(index[row, 0]) + 7)


def test_many_damages_are_all_named_and_repaired(small: _Demo) -> None:
    params, workspace = small
    before = digests(workspace)
    _flip(_shard(workspace, 0), 50)
    _shard(workspace, 1).unlink()
    (workspace.rgb / "records" / "part-00002.json").write_text("{}")
    shutil.rmtree(workspace.rgb / "box")
    found = verify.verify(workspace, repair=True)
    assert [
        (problem.file.relative_to(workspace.rgb).as_posix(), problem.part) for problem in found.problems
    ] == [
        ("records/part-00002.json", 2),
        ("frames/c.0.0.0.0", 0),
        ("frames/c.1.0.0.0", 1),
        ("box/c/0/0", None),
        ("box/zarr.json", None),
    ]
    build(params, workspace)
    assert verify.verify(workspace).problems == ()
    assert digests(workspace) == before


def test_damaged_tables_are_named_and_made_again(small: _Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    params, workspace = small
    tables = [workspace.manifest, workspace.classes, workspace.failures("rgb"), workspace.counts("rgb")]
    whole = [table.read_bytes() for table in tables]
    _flip(workspace.manifest, 200)
    workspace.classes.unlink()
    _flip(workspace.failures("rgb"), 3)
    assert {problem.file for problem in verify.verify(workspace).problems} == set(tables[:3])
    _flip(workspace.counts("rgb"), 9)
    result = _command(workspace, monkeypatch, "--repair")
    assert "clips: even__clip0, even__clip2, even__clip4, odd__clip1" in result.stdout.splitlines()[0]
    assert "harcache index, rgb makes it again" in result.stdout
    build(params, workspace)
    assert [table.read_bytes() for table in tables] == whole
    assert verify.verify(workspace).problems == ()


def test_a_store_under_repair_is_not_read(small: _Demo) -> None:
    _, workspace = small
    _flip(_shard(workspace, 0), 50)
    verify.verify(workspace, repair=True)
    with pytest.raises(CacheError, match="the store is incomplete; run the stage that makes it again"):
        cache.open(workspace.rgb)
    assert {problem.stage for problem in verify.verify(workspace).problems} == {"rgb"}


def test_a_store_without_its_metadata_is_told_of_and_made_from_the_parts_that_are_there(small: _Demo) -> None:
    params, workspace = small
    before = {path: path.stat().st_ino for path in (workspace.rgb / "frames").glob("c.*")}
    (workspace.rgb / "zarr.json").unlink()
    (problem,) = verify.verify(workspace, repair=True).problems
    assert problem.file == workspace.rgb / "zarr.json" and problem.what.startswith("no store here")
    build(params, workspace)
    assert verify.verify(workspace).problems == ()
    assert {path: path.stat().st_ino for path in (workspace.rgb / "frames").glob("c.*")} == before


def test_files_of_no_cache_are_told_of_and_harm_none(small: _Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    _, workspace = small
    strays = [_shard(workspace, 3).with_suffix(".0.partial"), workspace.rgb / "notes.txt"]
    for stray in strays:
        stray.touch()
    for options in ((), ("--repair",)):
        result = _command(workspace, monkeypatch, *options)
        assert result.exit_code == 0
        for stray in strays:
            assert f"{stray.name}: no file of a cache; harmless" in result.stdout and stray.exists()
    assert len(cache.open(workspace.rgb)) == 6


def test_clips_without_a_record_are_told_of_and_need_no_repair(small: _Demo) -> None:
    _, workspace = small
    workspace.crops.write_text(workspace.crops.read_text() + "new,4,4,44,44,persons,new\n")
    (problem,) = verify.verify(workspace, repair=True).problems
    assert (problem.file, problem.clips, problem.part) == (workspace.rgb, ("new",), None)
    assert "run harcache rgb" in problem.what
    assert len(cache.open(workspace.rgb)) == 6


def test_an_index_that_is_not_of_these_parts_is_told_of(small: _Demo) -> None:
    params, workspace = small
    entries = [
        IndexEntry(
            f"{'odd' if n % 2 else 'even'}__clip{n}",
            0,
            FRAMES * (n // 2),
            FRAMES,
            range(FRAMES),
            (0, 0, 1, 1),
            (1, 1),
        )
        for n in (0, 2)
    ]
    write_index(workspace.rgb, entries)
    (problem,) = verify.verify(workspace, repair=True).problems
    assert "the index and the records disagree" in problem.what
    build(params, workspace)
    assert verify.verify(workspace).problems == ()


def test_a_second_process_does_not_verify_what_is_being_made(small: _Demo) -> None:
    _, workspace = small
    with dataset_lock(workspace.data), pytest.raises(HarcacheError, match="is in use by process"):
        verify.verify(workspace)


def test_a_clip_added_later_leaves_the_caches_whole(small: _Demo) -> None:
    params, workspace = small
    add_video(workspace, 7)
    build(params, workspace)
    assert verify.verify(workspace).problems == ()


def _flip_in_every_row(path: Path) -> None:
    content = np.frombuffer(path.read_bytes(), np.uint8).copy()
    # A frame takes more than 300 bytes; the shard's own index, of up to 128 rows, stays whole.
    content[50 : -16 * 128 - 4 : 300] ^= 1
    path.write_bytes(content)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


_TRAINING_DAMAGE: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "a flipped bit in a shard": (
        "rgb.zarr/frames/c.1.0.0.0",
        _flip_in_every_row,
        r"c\.1\.0\.0\.0: row \d+ \(clip '\S+'\) is damaged",
    ),
    "a shard that is cut off": ("rgb.zarr/frames/c.1.0.0.0", _cut, r"c\.1\.0\.0\.0: the shard's index is"),
    "a shard that is gone": (
        "rgb.zarr/frames/c.1.0.0.0",
        Path.unlink,
        r"c\.1\.0\.0\.0: row \d+ \(clip '\S+'\) and those after it are missing",
    ),
    "an index of other rows": (
        "rgb.zarr/start/c/0",
        lambda path: _flip(path, 20),
        r"start/c/0: the clip index is",
    ),
    "metadata of another shape": (
        "rgb.zarr/frames/zarr.json",
        lambda path: path.write_text(path.read_text().replace("120", "121")),
        r"frames/zarr\.json: the clip index is damaged",
    ),
    "a group of other shards": (
        "rgb.zarr/zarr.json",
        lambda path: path.write_text(path.read_text().replace('"shard_rows": 40', '"shard_rows": 41')),
        r"rgb\.zarr/zarr\.json: damaged, it does not match its digest",
    ),
}


# The loader must end as fast as it reads: it would wait for ever for a thread that died.
@pytest.mark.timeout(60)
@pytest.mark.parametrize("damage", _TRAINING_DAMAGE)
def test_the_loader_stops_at_damage_with_its_file(small: _Demo, damage: str) -> None:
    _, workspace = small
    name, spoil, message = _TRAINING_DAMAGE[damage]
    clips = [(id, 0) for id in cache.open(workspace.rgb).ids]
    spoil(workspace.data / name)
    with pytest.raises(CacheError, match=message):
        store = cache.open(workspace.rgb)
        for _ in ClipLoader(ClipDataset(clips, rgb=store, train=True, clip_len=8, rgb_frames=8), 2):
            pass


# Imports Lightning and builds the demo where no test has done so yet.
@pytest.mark.timeout(240)
@pytest.mark.parametrize("how", ["flip", "cut", "delete"])
def test_training_stops_at_damage_with_its_file_and_clip(
    own_demo: Workspace, params: DatasetParams, how: str
) -> None:
    for shard in (own_demo.rgb / "frames").glob("c.*"):
        {"flip": _flip_in_every_row, "cut": _cut, "delete": Path.unlink}[how](shard)
    clip = r"row \d+ \(clip 'S\w+'\)" if how != "cut" else "the shard's index is damaged or cut off"
    with Engine(workers=0) as engine, pytest.raises(CacheError, match=rf"frames/c\.\d\.0\.0\.0: {clip}"):
        train.run("rgb", params, own_demo, engine)
    assert not own_demo.training("rgb").exists() or not list(own_demo.training("rgb").glob("*.pt"))


def _newer_record(workspace: Workspace) -> Path:
    path = record_path(workspace.poses, 0)
    path.write_text(replace(read_record(path), format=3).to_json())
    return path


def _newer_store(workspace: Workspace) -> Path:
    write_attributes(workspace.rgb, read_attributes(workspace.rgb) | {"format_version": 3})
    return workspace.rgb


@pytest.mark.parametrize("make", [_newer_record, _newer_store])
def test_what_a_newer_version_wrote_is_not_damaged_and_nothing_of_it_is_removed(
    demo: Workspace, params: DatasetParams, tmp_path: Path, make: Callable[[Workspace], Path]
) -> None:
    workspace = copy_of(demo, tmp_path)
    path = make(workspace)
    before = {file: file.read_bytes() for file in workspace.data.rglob("*") if file.is_file()}
    message = rf"{path} was written by a newer version of harcache \(format 3, this one reads 2\)"
    for repair in (False, True):
        with pytest.raises(NewerFormatError, match=message):
            verify.verify(workspace, repair)
    with pytest.raises(HarcacheError, match=message):
        _run(["detect", "pose", "crop", "heatmap", "rgb"], params, workspace)
    after = {file: file.read_bytes() for file in before if file.is_file()}
    assert {f: b for f, b in after.items() if f.name != ".lock"} == {
        f: b for f, b in before.items() if f.name != ".lock"
    }
