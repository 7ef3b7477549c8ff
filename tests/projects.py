"""What the tests of whole builds share: a project folder with the DVC files, and real commands run in it."""

import hashlib
import os
import shutil
import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from harcache.pipeline.video.frames import read_frames
from harcache.pipeline.video.writing import write_video

ROOT = Path(__file__).parents[1]
EXTRACTION = ("index", "detect", "pose", "crop", "heatmap", "rgb")
# The folders that hold parts, and where in a dataset's data each one's records lie.
RECORDS = {
    "detections": "detections",
    "poses": "poses",
    "heatmaps.zarr": "heatmaps.zarr/records",
    "rgb.zarr": "rgb.zarr/records",
}
_SHIPPED = ("dvc.yaml", ".dvcignore", ".dvc/config", ".dvc/.gitignore", ".gitignore")


def new_project(project: Path, params: dict[str, Any]) -> Path:
    """Make a folder with the shipped DVC files and with these parameters."""
    for name in _SHIPPED:
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, project / name)
    write_params(project, params)
    return project


def commit_all(project: Path) -> None:
    """Make the project a Git repository of what is in it."""
    me = ("-c", "user.name=test", "-c", "user.email=test@example.org")
    for command in (["init", "--quiet"], ["add", "--all"], [*me, "commit", "--quiet", "--message", "start"]):
        succeeded(project, "git", *command)


def tiny_params() -> dict[str, Any]:
    """The shipped parameters, with networks and stores so small that a build takes seconds."""
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    demo, training = content["datasets"]["demo"], content["training"]["demo"]
    demo["heatmap"] |= {"size": 32, "shard_rows": 200}
    demo["rgb"] |= {"size": 64, "shard_rows": 200}
    training["sample"] = {"clip_len": 8, "rgb_frames": 4}
    training["model"] |= {"width": 8, "rgb_blocks": [1, 1, 1], "pose_blocks": [1, 1, 1]}
    for network in ("pose", "rgb", "epam"):
        training[network] |= {"epochs": 1, "batch_size": 4}
    return content


def write_params(project: Path, content: dict[str, Any]) -> None:
    """Write params.yaml."""
    (project / "params.yaml").write_text(yaml.safe_dump(content))


def cut_videos(sources: Path, folder: Path, count: int, frames: int) -> None:
    """Cut ``count`` videos of so many frames out of the demo's, so that there are figures in them."""
    videos = sorted(sources.glob("*_rgb.mp4"))
    folder.mkdir(parents=True)
    for number in range(count):
        start = number // len(videos)
        cut = list(islice(read_frames(videos[number % len(videos)], start, start + frames), frames))
        write_video(folder / f"{number:03}.mp4", cut, fps=30)


def environment(project: Path, **more: str) -> dict[str, str]:
    """What commands run in: nothing of the outside but the programs; DVC's own folders beside the project."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("HARCACHE_", "DVC_"))}
    folders = {
        f"DVC_{kind}_DIR": str(project.with_name(f"dvc-{kind}").absolute())
        for kind in ("SITE_CACHE", "GLOBAL_CONFIG", "SYSTEM_CONFIG")
    }
    scripts = str(Path(sys.executable).parent)
    path = f"{scripts}{os.pathsep}{os.environ['PATH']}"
    return own | folders | {"HARCACHE_WORKERS": "0", "PATH": path} | more


def run(project: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command in the project and return what it said."""
    return subprocess.run(command, cwd=project, env=environment(project), capture_output=True, text=True)


def succeeded(project: Path, *command: str) -> str:
    """Run a command that must end well and return its output."""
    done = run(project, *command)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def files(folder: Path) -> dict[str, tuple[int, str]]:
    """Time of change and digest of every file below ``folder``."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): (path.stat().st_mtime_ns, digest(path.read_bytes()))
        for path in paths
    }


def digests(folder: Path) -> dict[str, str]:
    """Digest of every file below ``folder``, but for the lock and how long it took."""
    found = {name: content for name, (_, content) in files(folder).items() if name != ".lock"}
    return {name: content for name, content in found.items() if not name.startswith("rates/")}


def digest(content: bytes) -> str:
    """Stands for some bytes."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()
