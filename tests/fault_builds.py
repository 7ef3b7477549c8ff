"""Runs builds for test_faults.py, each a process tree of its own that may be killed.

Every build is forked from this process, which has loaded PyTorch and the backends already: so 50 kills cost
what is between them and not 50 times those seconds. What runs is the command line's own code.

A line "FOLDER LIMIT" on stdin builds in that project folder, with files limited to that many bytes (-1: not).
On stdout come "begun PID", the name of each stage as it begins, and "ended STATUS".
"""

import contextlib
import io
import os
import resource
import sys
from pathlib import Path

import torch

from harcache.cli import main
from harcache.models.detectors.registry import load_detector
from harcache.models.estimators.registry import load_pose_estimator
from harcache.pipeline.params import load_params
from harcache.stages import crop, detect, heatmap, index, pose, rgb
from tests.projects import EXTRACTION

_LOADED = (crop, detect, heatmap, index, pose, rgb)


def _build(folder: Path, limit: int) -> int:
    os.setsid()
    os.chdir(folder)
    print("begun", os.getpid(), flush=True)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    log = io.StringIO()
    with contextlib.redirect_stderr(log):
        ended_well = all(_runs(stage, log) for stage in EXTRACTION)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    Path("log").write_text(log.getvalue())
    return 0 if ended_well else 1


def _runs(stage: str, log: io.StringIO) -> bool:
    print(stage, flush=True)
    try:
        with contextlib.redirect_stdout(log):
            main([stage, "demo"])
    except SystemExit as end:
        return end.code == 0
    raise AssertionError("a command of click always exits")


def _serve(params: Path) -> None:
    torch.set_num_threads(1)
    loaded = load_params(params, dataset="demo")
    load_detector(loaded.detect, None, "cpu")
    load_pose_estimator(loaded.pose, None, "cpu")
    print("ready", flush=True)
    for line in sys.stdin:
        folder, limit = line.split()
        child = os.fork()
        if child == 0:
            os._exit(_build(Path(folder), int(limit)))
        _, status = os.waitpid(child, 0)
        print("ended", os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    _serve(Path(sys.argv[1]))
