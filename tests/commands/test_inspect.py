"""What the caches hold is told as it is, and a digest speaks of the clips, not of where they lie."""

import json
import re
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from harcache import cache
from harcache.cache.store_writer import mark_incomplete
from harcache.cli import main
from harcache.commands.inspect import digests, total
from harcache.pipeline.base.errors import HarcacheError
from harcache.pipeline.params import DatasetParams
from harcache.stages.shared.contents import info
from harcache.stages.shared.workspace import Workspace
from tests.footage import add_video, build, film


@pytest.fixture
def small(tmp_path: Path, params: DatasetParams) -> tuple[DatasetParams, Workspace]:
    """Six clips in three shards."""
    return film(tmp_path, params)


def _harcache(project: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Result:
    monkeypatch.chdir(project)
    return CliRunner().invoke(main, ["cache", *arguments], prog_name="harcache")


def test_info_of_a_store_that_is_being_made_says_so(
    small: tuple[DatasetParams, Workspace], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark_incomplete(small[1].rgb)
    text = _harcache(tmp_path, monkeypatch, "info", "small")
    assert text.exit_code == 0
    assert re.search(r"rgb\.zarr: 6 clips, 3 parts, \d+ bytes, not finished", text.stdout)
    as_json = _harcache(tmp_path, monkeypatch, "info", "small", "--json")
    assert json.loads(as_json.stdout)["caches"]["rgb.zarr"]["finished"] is False


def test_info_can_be_read_by_people_and_by_programs(
    small: tuple[DatasetParams, Workspace], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = _harcache(tmp_path, monkeypatch, "info", "small")
    assert text.exit_code == 0
    assert "rgb.zarr: 6 clips, 120 rows, 3 parts" in text.stdout and "frames jpeg 95" in text.stdout
    as_json = _harcache(tmp_path, monkeypatch, "info", "small", "--json")
    assert json.loads(as_json.stdout) == info(small[1])


def test_caches_grown_in_steps_have_the_digests_of_those_made_in_one_go(
    tmp_path: Path, params: DatasetParams
) -> None:
    small, grown = film(tmp_path / "grown", params, clips=3)
    add_video(grown, 4)
    add_video(grown, 5)
    build(small, grown)
    add_video(grown, 3)
    build(small, grown)
    _, whole = film(tmp_path / "whole", params, clips=6)
    starts = [dict(zip((s := cache.open(w.rgb)).ids, s.start, strict=True)) for w in (grown, whole)]
    assert starts[0] != starts[1]
    assert digests(grown) == digests(whole)
    assert len(set(digests(whole).values())) == 6


def test_another_crop_or_frame_gives_another_digest_of_that_clip_alone(
    small: tuple[DatasetParams, Workspace],
) -> None:
    params, workspace = small
    before = digests(workspace)
    video = workspace.videos / "odd" / "clip1.mkv"
    shutil.copy(workspace.videos / "odd" / "clip3.mkv", video)
    build(params, workspace)
    after = digests(workspace)
    assert [id for id in before if before[id] != after[id]] == ["odd__clip1"]
    assert total(before) != total(after)


def test_the_digest_speaks_of_every_cache(own_demo: Workspace) -> None:
    whole = digests(own_demo)
    found = [whole]
    for folder in (own_demo.rgb, own_demo.heatmaps, own_demo.poses):
        shutil.rmtree(folder)
        found.append(digests(own_demo))
    assert all(first[id] != second[id] for first, second in pairwise(found) for id in whole)


def test_digests_are_printed_a_line_a_clip_and_one_in_all(
    small: tuple[DatasetParams, Workspace], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips = digests(small[1])
    lines = _harcache(tmp_path, monkeypatch, "digest", "small").stdout.splitlines()
    assert lines == [*(f"{digest}  {id}" for id, digest in clips.items()), f"{total(clips)}  total"]
    as_json = json.loads(_harcache(tmp_path, monkeypatch, "digest", "small", "--json").stdout)
    assert as_json == {"dataset": "small", "digest": total(clips), "clips": clips}


def test_a_damaged_clip_has_no_digest_but_an_error(small: tuple[DatasetParams, Workspace]) -> None:
    _, workspace = small
    shard = workspace.rgb / "frames" / "c.1.0.0.0"
    content = bytearray(shard.read_bytes())
    content[100] ^= 1
    shard.write_bytes(content)
    with pytest.raises(
        HarcacheError, match=r"frames/c\.1\.0\.0\.0: row 40 \(clip 'even__clip4'\) is damaged"
    ):
        digests(workspace)


@pytest.mark.parametrize("command", ["info", "digest", "verify"])
def test_a_dataset_without_caches_is_refused_and_no_folder_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    project = {tmp_path / "dvc.yaml", tmp_path / "params.yaml"}
    for file in project:
        file.touch()
    result = _harcache(tmp_path, monkeypatch, command, "smal")
    assert result.exit_code == 1
    assert "data/smal has no caches; correct the dataset's name" in result.stderr
    assert set(tmp_path.iterdir()) == project
