"""A command ends with whoever runs it, where it asked for that."""

import signal
import subprocess
import sys
import time

import psutil
import pytest

_PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdout=subprocess.PIPE, text=True)
print(child.pid, child.stdout.readline(), flush=True)
time.sleep(60)
"""
_WAIT = "import time; print('waits', flush=True); time.sleep(60)"
_END = f"from harcache.pipeline.base.processes import end_with_parent; end_with_parent(); {_WAIT}"


@pytest.mark.parametrize(("child", "ends"), [(_END, True), (_WAIT, False)])
def test_a_child_ends_with_its_killed_parent_if_it_asked_for_that_alone(child: str, ends: bool) -> None:
    command = [sys.executable, "-c", _PARENT, child]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as parent:
        assert parent.stdout is not None
        process = psutil.Process(int(parent.stdout.readline().split()[0]))
        parent.kill()
        parent.wait()
    if ends:
        process.wait(timeout=30)
    else:
        time.sleep(0.3)
        assert process.is_running()
        process.send_signal(signal.SIGKILL)
