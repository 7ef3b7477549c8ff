"""A long video of large frames never lies in memory whole, whatever stage reads it."""

import json
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from itertools import chain, repeat
from pathlib import Path

import numpy as np
import pytest

from harcache.pipeline.datasets.drawn_figures.backgrounds import make_room
from harcache.pipeline.datasets.drawn_figures.figures import render
from harcache.pipeline.datasets.drawn_figures.performers import make_look
from harcache.pipeline.datasets.drawn_figures.scenes import make_scene
from harcache.pipeline.params import FolderIndexParams, RgbParams
from harcache.pipeline.video.writing import write_video
from harcache.pipeline.work.engine import Engine
from harcache.stages import crop, detect, index, pose, rgb
from harcache.stages.shared.workspace import Workspace
from tests.projects import environment
from tests.tiny_demo import PARAMS

_SIZE = (1080, 1920)
# Ten minutes at one frame in three seconds: decoded, they would be 1.2 GB.
_FRAMES = 200
_MOST = 1.1e9  # bytes, of which the libraries take 0.6


@pytest.mark.slow  # 17 s of one core: 600 large frames are decoded, and a network looks at 200 of them
@pytest.mark.timeout(300)
def test_ten_minutes_of_full_hd_take_no_more_memory_than_a_worker_may_have(tmp_path: Path) -> None:
    videos = tmp_path / "videos" / "long"
    videos.mkdir(parents=True)
    rng = np.random.default_rng(0)
    room = make_room(_SIZE, rng)
    scene = make_scene(5, 2, (make_look(rng),), 30, room, rng, rng)
    # Somebody comes and goes: the pose network has little to do, and every frame is decoded for it.
    someone = [render(scene, number) for number in range(0, 30, 3)]
    frames = chain(someone, repeat(room, _FRAMES - 2 * len(someone)), someone)
    write_video(videos / "long.avi", frames, Fraction(1, 3), "mpeg4", 3)
    command = [sys.executable, "-m", "tests.test_long_video", str(tmp_path)]
    root = Path(__file__).parents[1]
    done = subprocess.run(
        command, cwd=root, env=environment(root, OMP_NUM_THREADS="1"), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    peaks = json.loads(done.stdout.splitlines()[-1])
    assert _FRAMES * _SIZE[0] * _SIZE[1] * 3 > _MOST > max(peaks.values()), peaks


def _main(project: Path) -> None:
    """Take the video through the stages in this process and print its peak in bytes after each of them."""
    workspace = Workspace.under(project, "long", project / "videos", max_failed=0)
    params = replace(
        PARAMS, name="long", index=FolderIndexParams("folder"), rgb=RgbParams(shard_rows=512, size=64)
    )
    peaks = {}
    with Engine(workers=0) as engine:
        for stage in (index, detect, pose, crop, rgb):
            stage.run(params, workspace, engine)
            status = Path("/proc/self/status").read_text()
            peaks[stage.__name__] = int(status.split("VmHWM:")[1].split()[0]) * 1024
    print(json.dumps(peaks))


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
