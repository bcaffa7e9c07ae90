"""What is recorded of the environment: the same as long as nothing in it changes."""

from __future__ import annotations

import json
import subprocess
import sys

from orchestration.environment import code_version, environment_fingerprint

PRINT = (
    "import json, sys\n"
    "from orchestration.environment import code_version, environment_fingerprint\n"
    "print(json.dumps([environment_fingerprint(), code_version(), 'torch' in sys.modules]))\n"
)


def test_two_processes_in_one_environment_have_one_fingerprint_and_torch_is_not_loaded_for_it() -> None:
    done = subprocess.run([sys.executable, "-c", PRINT], capture_output=True, text=True, check=True)
    theirs, version, torch_loaded = json.loads(done.stdout)
    assert theirs == environment_fingerprint()
    assert version.split()[0] == code_version().split()[0]  # the checkout itself may change meanwhile
    assert not torch_loaded


def test_the_fingerprint_names_what_decides_whether_bits_may_be_equal() -> None:
    found = environment_fingerprint()
    assert found["versions"]["torch"][0].isdigit()
    assert found["versions"]["numpy"][0].isdigit()
    assert found["processor"]
    assert found["threads"] >= 1
    assert len(found["digest"]) == len(found["packages"]) == 64


def test_the_digest_changes_with_the_threads_that_may_be_used() -> None:
    one = "import os\nos.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n" + PRINT
    done = subprocess.run([sys.executable, "-c", one], capture_output=True, text=True, check=True)
    theirs = json.loads(done.stdout)[0]
    assert theirs["threads"] == 1
    assert (theirs["digest"] == environment_fingerprint()["digest"]) == (
        environment_fingerprint()["threads"] == 1
    )


def test_the_code_version_is_the_commit_or_the_package() -> None:
    assert code_version().startswith(("git ", "affinery "))
