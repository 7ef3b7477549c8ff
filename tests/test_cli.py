"""What a user sees of the commands: help with an example, and bad input answered in one line."""

import csv
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import av
import click
import numpy as np
import pytest
import yaml
from click.testing import CliRunner, Result

from harcache.cli import main
from harcache.pipeline.clips import read_manifest
from harcache.pipeline.skeletons.imported import ImportedPose, write_imported_poses
from harcache.pipeline.video.writing import write_video
from harcache.pipeline.work.outcomes import read_counts, read_failures

_ROOT = Path(__file__).parents[1]
_SCRIPT = Path(sys.executable).with_name("harcache")
_PROGRESS = re.compile(r"\w+: \d+/\d+ (videos|clips), ")
_EXTRACTION = ("index", "detect", "pose", "crop", "heatmap", "rgb")


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the shipped parameters under the name "mine" and no videos, which commands run in."""
    for name in ("HARCACHE_VIDEOS", "HARCACHE_WEIGHTS_DIR", "HARCACHE_DEVICE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HARCACHE_WORKERS", "0")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user-cache"))
    monkeypatch.chdir(tmp_path)
    shipped = yaml.safe_load((_ROOT / "params.yaml").read_text())
    mine = shipped["datasets"]["demo"] | {"index": {"layout": "folder"}}
    training = shipped["training"]["demo"] | {"protocol": "default"}
    _write_params({"datasets": {"mine": mine}, "training": {"mine": training}})
    return tmp_path


@pytest.fixture
def videos(project: Path) -> Path:
    """Three good videos of two classes."""
    folder = project / "videos" / "mine"
    for number, name in enumerate(("run/a.mp4", "run/b.avi", "walk/c.mp4")):
        _write_good(folder / name, 4 + number)
    return folder


def _write_params(content: dict[str, Any]) -> None:
    Path("params.yaml").write_text(yaml.safe_dump(content))


def _change_params(**sections: dict[str, object]) -> None:
    content = yaml.safe_load(Path("params.yaml").read_text())
    for section, values in sections.items():
        content["datasets"]["mine"][section].update(values)
    _write_params(content)


def _write_good(path: Path, frames: int = 4) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    write_video(path, rng.integers(0, 256, (frames, 48, 64, 3), np.uint8), fps=25)


def _write_text(path: Path) -> None:
    path.write_text("no video\n" * 50)


def _write_nothing(path: Path) -> None:
    path.touch()


def _write_half(path: Path) -> None:
    _write_good(path, 30)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


def _write_sound(path: Path) -> None:
    with av.open(path, "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        for start in range(0, 16384, 1024):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            frame.sample_rate, frame.pts = 16000, start
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


_BAD_VIDEOS: dict[str, tuple[Callable[[Path], None], str]] = {
    "text.mp4": (_write_text, r"is no video or its end is missing"),
    "zero.mp4": (_write_nothing, r"is empty \(0 bytes\)"),
    "half.mp4": (_write_half, r"is no video or its end is missing"),
    "half.avi": (_write_half, r"is cut short or damaged: some of its 14 frames are not whole"),
    "sound.mp4": (_write_sound, r"has no video stream"),
}


def _harcache(*arguments: str) -> Result:
    """Run a command in this process, which spares loading PyTorch each time."""
    return CliRunner().invoke(main, arguments, prog_name="harcache")


def _refusal(*arguments: str) -> str:
    """Run a command that must fail for the user's reasons, and return the one line that says why."""
    result = _harcache(*arguments)
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == 1
    *before, line = result.stderr.splitlines()
    assert all(_PROGRESS.match(shown) for shown in before)
    assert line.startswith("Error: ")
    return line.removeprefix("Error: ")


def _succeeded(*arguments: str) -> str:
    result = _harcache(*arguments)
    assert (result.exit_code, result.exception) == (0, None), result.output
    return result.stdout


def _counts(stage: str) -> dict[str, int]:
    return asdict(read_counts(Path(f"data/mine/counts/{stage}.json")))


def _commands(group: click.Group, *path: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Give each command that is no group, with its words: ("bench", "model")."""
    for name, command in sorted(group.commands.items()):
        if isinstance(command, click.Group):
            yield from _commands(command, *path, name)
        else:
            yield (*path, name), command


@pytest.mark.parametrize(("words", "command"), [pytest.param(*c, id=" ".join(c[0])) for c in _commands(main)])
def test_every_command_has_help_with_an_example_that_it_accepts(
    words: tuple[str, ...], command: click.Command
) -> None:
    shown = _succeeded(*words, "--help")
    example = re.search(r"^ *Example: harcache (.+)$", shown, re.MULTILINE)
    assert example, shown
    given = shlex.split(example[1])
    assert tuple(given[: len(words)]) == words
    assert command.make_context(words[-1], given[len(words) :]).command is command


def test_the_console_script_names_every_command() -> None:
    shown = subprocess.run([_SCRIPT, "--help"], capture_output=True, text=True, check=True).stdout
    listed = re.findall(r"^  (\w+)  +[A-Z]", shown.partition("Commands:")[2], re.MULTILINE)
    assert listed == sorted(main.commands)


@pytest.mark.parametrize("way", [["-m", "harcache"], [str(_ROOT / "cli.py")]], ids=["module", "file"])
def test_python_runs_the_commands_as_the_console_script_does(way: list[str]) -> None:
    shown = [
        subprocess.run([*command, "models", "--help"], capture_output=True, text=True, check=True).stdout
        for command in ([_SCRIPT], [sys.executable, *way])
    ]
    assert shown[0].partition("\n")[2] == shown[1].partition("\n")[2] != ""


def test_help_loads_nothing_but_the_command_line() -> None:
    script = (
        "import sys\nfrom harcache.cli import main\nmain(['--help'], standalone_mode=False)\n"
        "print(sorted({'torch', 'dask', 'numpy', 'zarr', 'cv2', 'av'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        ("detect --help", r"Example: harcache detect demo"),
        ("evaluate miine", r"Did you mean 'mine'\?"),
        ("index mine", r"videos/mine is not a folder"),
        ("rgb mine", r"manifest\.csv is missing"),
    ],
)
def test_what_needs_no_network_does_not_wait_for_pytorch(arguments: str, answer: str) -> None:
    asked = f"import sys; from harcache.cli import main; main({arguments.split()!r}, standalone_mode=False)"
    script = f"try:\n    {asked}\nexcept Exception as error:\n    print(error)\nprint('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert re.search(rf"{answer}(.|\n)*\nFalse\n$", done.stdout)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("detec mine", "No such command 'detec'"),
        ("detect", "Missing argument 'DATASET'"),
        ("train poes mine", "'poes' is not one of 'pose', 'rgb', 'epam'"),
        ("detect mine --max-failed 7", r"7.0 is not in the range 0<=x<=1"),
        ("pose mine --max-skipped 7", r"7.0 is not in the range 0<=x<=1"),
        ("detect mine --weight-dir w", "No such option.*--weights?-dir"),
    ],
)
def test_wrong_usage_is_answered_with_status_2(arguments: str, message: str) -> None:
    result = _harcache(*arguments.split())
    assert result.exit_code == 2
    assert re.search(f"Error: .*{message}", result.stderr)


def test_a_missing_folder_of_videos_is_named() -> None:
    assert _refusal("index", "mine") == "videos/mine is not a folder: put the dataset's videos there"


def test_an_empty_folder_of_videos_is_named(project: Path) -> None:
    (project / "videos" / "mine").mkdir(parents=True)
    assert re.match(r"videos/mine has no videos for the layout 'folder'", _refusal("index", "mine"))


def test_the_folder_of_videos_comes_from_the_environment(
    videos: Path, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    videos.parent.rename(project / "elsewhere")
    monkeypatch.setenv("HARCACHE_VIDEOS", str(project / "elsewhere"))
    assert "index: 3 ok, 0 skipped, 0 failed of 3 clips" in _succeeded("index", "mine")


@pytest.mark.parametrize("name", _BAD_VIDEOS)
def test_a_bad_video_is_answered_in_one_line(
    name: str, project: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write, reason = _BAD_VIDEOS[name]
    path = project / "videos" / "mine" / name
    path.parent.mkdir(parents=True)
    write(path)
    message = _refusal("index", "mine")
    assert re.match(rf"index: 1 of 1 failed, more than 1\.0%; first {path.stem}: {name} ({reason})", message)
    assert message.endswith("allow more by --max-failed 1, for dvc by HARCACHE_MAX_FAILED=1")
    # What FFmpeg itself has to say would come by the file descriptors.
    assert capfd.readouterr() == ("", "")


def test_bad_videos_among_good_ones_are_listed_and_the_others_kept(videos: Path) -> None:
    for name, (write, _) in _BAD_VIDEOS.items():
        write(videos / name)
    done = subprocess.run(
        [_SCRIPT, "index", "mine", "--max-failed", "1"], capture_output=True, text=True, check=True
    )
    told = done.stdout.splitlines()
    assert re.fullmatch(r"index: 3 clips of 3 videos, \d+ frames, [\d.e-]+ hours", told[0])
    assert told[1] == "index: default: 2 classes, 2 train, 1 test"
    assert told[2] == "index: default: 1 with train clips alone, no test: walk"
    assert sorted(line.rpartition(": ")[2] for line in told[3:-1]) == [
        "half.avi", "half.mp4", "sound", "text", "zero"
    ]  # fmt: skip
    assert told[-1] == "index: 3 ok, 0 skipped, 5 failed of 8 clips"
    assert all(_PROGRESS.match(line) for line in done.stderr.splitlines())
    assert [clip.video for clip in read_manifest(Path("data/mine/manifest.csv"))] == [
        "run/a.mp4", "run/b.avi", "walk/c.mp4"
    ]  # fmt: skip
    with Path("data/mine/failures/index.csv").open(newline="") as file:
        failures = {row["id"]: row for row in csv.DictReader(file)}
    assert sorted(failures) == ["half.avi", "half.mp4", "sound", "text", "zero"]
    for name, (_, reason) in _BAD_VIDEOS.items():
        row = failures.get(name) or failures[Path(name).stem]
        assert row["status"] == "failed"
        assert re.match(rf"{name} ({reason})", row["reason"])


def test_more_bad_videos_than_allowed_are_an_error(videos: Path) -> None:
    _write_text(videos / "text.mp4")
    assert re.match(
        r"index: 1 of 4 failed, more than 20\.0%", _refusal("index", "mine", "--max-failed", "0.2")
    )
    assert "1 failed of 4 clips" in _succeeded("index", "mine", "--max-failed", "0.25")


def test_the_environment_allows_failures_as_dvc_gives_no_options(
    videos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write_text(videos / "text.mp4")
    name, _, value = _refusal("index", "mine").rpartition(" by ")[2].strip().partition("=")
    monkeypatch.setenv(name, value)
    assert "1 failed of 4 clips" in _succeeded("index", "mine")


def test_gaps_in_poses_brought_along_are_allowed_by_option_environment_and_parameter(
    videos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keypoints, scores = np.ones((1, 9, 17, 2), np.float32), np.ones((1, 9, 17), np.float32)
    frames = {"run/a": 4, "run/b": 5}
    given = [ImportedPose(id, keypoints[:, :count], scores[:, :count]) for id, count in frames.items()]
    write_imported_poses(Path("poses.h5"), given, {})
    content = yaml.safe_load(Path("params.yaml").read_text())
    pose = {"backend": "import", "source": "poses.h5", "max_persons": 2}
    content["datasets"]["mine"] |= {"detect": {"backend": "none"}, "pose": pose}
    _write_params(content)
    for stage in ("index", "detect"):
        _succeeded(stage, "mine")
    message = _refusal("pose", "mine")
    assert message.startswith(
        "pose: 1 of 3 skipped that nobody asked to skip, more than 0.0%; first 'walk__c'."
    )
    option, environment, parameter = re.findall(
        r"(--max-skipped [\d.]+\d|HARCACHE\w+=[\d.]+\d|max_skipped: [\d.]+\d)", message
    )
    assert "2 ok, 1 skipped, 0 failed" in _succeeded("pose", "mine", *option.split())
    with monkeypatch.context() as patched:
        patched.setenv(*environment.split("="))
        assert "2 ok, 1 skipped, 0 failed" in _succeeded("pose", "mine")
    _refusal("pose", "mine")
    _change_params(pose=yaml.safe_load(parameter))
    assert "2 ok, 1 skipped, 0 failed" in _succeeded("pose", "mine")


def test_the_console_script_answers_bad_input_with_one_line_and_status_1() -> None:
    done = subprocess.run([_SCRIPT, "index", "mien"], capture_output=True, text=True)
    answer = "Error: params.yaml has no dataset 'mien'. Did you mean 'mine'?\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", answer)


def test_an_unknown_dataset_is_answered_with_the_nearest_one() -> None:
    assert _refusal("index", "mien") == "params.yaml has no dataset 'mien'. Did you mean 'mine'?"


def test_an_unknown_parameter_is_named_in_full_with_the_nearest_one() -> None:
    _change_params(detect={"scroe": 0.5})
    assert _refusal("detect", "mine") == (
        "datasets.mine.detect.scroe is no parameter of the backend 'ultralytics'. Did you mean 'score'?"
    )


def test_an_unknown_layout_is_answered_with_the_nearest_one(videos: Path) -> None:
    _change_params(index={"layout": "ntu06"})
    assert _refusal("index", "mine") == ("datasets.mine.index.layout is 'ntu06'. Did you mean 'ntu60'?")


def test_missing_parameters_are_answered_with_where_to_run(project: Path) -> None:
    (project / "params.yaml").unlink()
    assert _refusal("index", "mine") == (
        f"{project} is not in a project: neither it nor a folder above it has dvc.yaml and params.yaml; "
        "change to your project's folder, or create one with `harcache init`"
    )


@pytest.mark.parametrize("stage", ["detect", "pose", "train pose", "evaluate"])
def test_an_unknown_device_is_answered_with_what_works(stage: str) -> None:
    message = _refusal(*stage.split(), "mine", "--device", "gpu7")
    assert re.match(r"device 'gpu7' can't be used \(.*\); give cpu, or leave --device out", message)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "5000"),
        ({"GOMP_SPINCOUNT": "70"}, "70"),
        ({"OMP_WAIT_POLICY": "active"}, None),
    ],
    ids=str,
)
def test_training_leaves_the_cores_to_decoding_between_operators_unless_told_otherwise(
    given: dict[str, str], expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str | None] = []
    # Before PyTorch is loaded: its OpenMP reads this once.
    monkeypatch.setattr(
        "harcache.commands.cli.train.run_stage",
        lambda *_, **__: seen.append(os.environ.get("GOMP_SPINCOUNT")),
    )
    environment = {"GOMP_SPINCOUNT": None, "OMP_WAIT_POLICY": None, **given}
    CliRunner(env=environment).invoke(main, ["train", "pose", "mine"])
    assert seen == [expected]


def test_a_negative_number_of_workers_is_refused() -> None:
    assert _refusal("index", "mine", "--workers", "-1") == (
        "workers is -1: expected 0 (this process) or more"
    )


@pytest.mark.parametrize("stage", ["detect", "pose"])
def test_missing_weights_are_named_with_the_folder_to_put_them_in(
    stage: str, videos: Path, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _change_params(detect={"weights": "my-net.pt"}, pose={"weights": "my-net.pt"})
    monkeypatch.setenv("HARCACHE_WEIGHTS_DIR", str(project / "weights"))
    _succeeded("index", "mine")
    message = _refusal(stage, "mine")
    folders = rf"{project}/weights, {project}/user-cache/harcache/weights"
    assert re.match(rf"weights 'my-net\.pt' are not in {folders} and have no known source; ", message)
    assert f"put the file at {project}/weights/my-net.pt" in message


@pytest.mark.timeout(60)
def test_public_weights_are_missed_quickly_without_a_network(
    videos: Path, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _change_params(detect={"weights": "yolo11n.pt"})
    monkeypatch.setenv("HARCACHE_WEIGHTS_DIR", str(project / "weights"))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nothing answers there
    # urllib remembers the proxies of its first call, which another test may have made.
    monkeypatch.setattr("urllib.request._opener", None)
    _succeeded("index", "mine")
    message = _refusal("detect", "mine")
    assert re.match(r"weights yolo11n\.pt could not be fetched from https://\S+ \(.*refused.*\); ", message)
    assert f"put the file at {project}/weights/yolo11n.pt" in message
    assert list((project / "weights").iterdir()) == []


@pytest.mark.parametrize("stage", ["detect", "pose", "crop", "heatmap", "rgb", "train pose", "evaluate"])
def test_a_stage_before_index_names_what_it_misses(stage: str) -> None:
    message = _refusal(*stage.split(), "mine")
    assert re.match(
        r"data/mine/(manifest|classes)\.csv is missing; run the index stage, which writes it", message
    )


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ("pose", r"data/mine/detections lacks 3 of 3 clips, first 'run__a'; run its stage first"),
        ("crop", r"data/mine/\w+ lacks 3 of 3 clips, first 'run__a'; run its stage first"),
        ("heatmap", r"data/mine/crops\.csv is missing; run the crop stage, which writes it"),
        ("rgb", r"data/mine/crops\.csv is missing; run the crop stage, which writes it"),
        ("train pose", r"data/mine/rgb\.zarr: no store here; run the stage that makes it"),
        ("evaluate", r"data/mine/rgb\.zarr: no store here; run the stage that makes it"),
    ],
)
def test_a_stage_before_the_one_it_needs_names_what_it_misses(stage: str, message: str, videos: Path) -> None:
    _succeeded("index", "mine")
    assert re.match(message, _refusal(*stage.split(), "mine"))


def test_every_clip_is_counted_once_by_every_stage(videos: Path) -> None:
    _write_text(videos / "text.mp4")
    _succeeded("index", "mine", "--max-failed", "1")
    # Gone after it was indexed: detection fails, and what comes after leaves it out.
    shutil.move(videos / "walk" / "c.mp4", videos / "walk" / "c.txt")
    for stage in _EXTRACTION[1:]:
        shown = _succeeded(stage, "mine", "--max-failed", "1")
        counts = _counts(stage)
        assert sum(counts.values()) == 3
        assert "{ok} ok, {skipped} skipped, {failed} failed of 3 clips".format(**counts) in shown
    assert _counts("index") == {"ok": 3, "skipped": 0, "failed": 1}
    assert _counts("detect") == {"ok": 2, "skipped": 0, "failed": 1}
    assert all(_counts(stage) == {"ok": 2, "skipped": 1, "failed": 0} for stage in _EXTRACTION[2:])
    for stage in _EXTRACTION:
        listed = [status for _, status, _ in read_failures(Path(f"data/mine/failures/{stage}.csv"))]
        assert {"skipped": listed.count("skipped"), "failed": listed.count("failed")} == {
            kind: _counts(stage)[kind] for kind in ("skipped", "failed")
        }


def test_a_pickle_that_would_run_something_is_answered_in_one_line(project: Path) -> None:
    (project / "bad.pkl").write_bytes(b"cposix\nsystem\n(S'touch ran'\ntR.")
    done = CliRunner().invoke(main, ["poses", "import", "bad.pkl", "--out", "poses.h5"])
    assert done.exit_code == 1
    assert "bad.pkl is no pickle of arrays and plain containers: it names posix.system" in done.output
    assert not (project / "ran").exists() and not (project / "poses.h5").exists()


def test_a_stride_without_a_window_is_not_silently_left_out() -> None:
    result = _harcache("predict", "walk.mp4", "--checkpoint", "net.pt", "--stride", "2")
    assert result.exit_code == 2 and "give --window too" in result.stderr


def test_models_lists_every_network_beside_its_paper() -> None:
    shown = _succeeded("models", "--classes", "120")
    assert re.search(r"^EPAM-Net .* 2,577,717 +2\.5 M +7\.618 G +8\.1 G$", shown, re.MULTILINE)
    assert re.search(r"^AMFI-Net .* 43\.26 M .* 5\.67 G$", shown, re.MULTILINE)


def test_weights_that_are_missing_or_no_network_are_answered_in_one_line(project: Path) -> None:
    _write_text(project / "net.pth")
    message = _refusal("weights", "import", "net.pth", "--out", "net.pt")
    assert message.startswith(
        "net.pth cannot be read as a checkpoint of plain weights (it is no file of PyTorch)"
    )
    assert _refusal("export", "net.pt", "net.onnx").startswith("there is no checkpoint net.pt")
