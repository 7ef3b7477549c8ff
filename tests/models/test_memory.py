"""Promises of models.memory: a process that keeps its memory does not ask the system for it again."""

import subprocess
import sys

import pytest

PROGRAM = """
import resource
from harcache.models.memory import keep_freed_memory
{setting}
def faults():
    # More than the 32 MiB above which glibc always maps and unmaps.
    bytearray(2**26)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
faults()
before = faults()
print(faults() - before)
"""


def faults_with(setting):
    program = PROGRAM.format(setting=setting)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have another allocator")
def test_freed_memory_is_used_again_without_new_pages():
    assert faults_with("") > 1000
    assert faults_with("keep_freed_memory()") < 100
