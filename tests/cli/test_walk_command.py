"""``gpuhmm walk`` as its users call it: output, JSON, exit codes, messages."""

import ctypes
import json
import os
import pathlib
import subprocess
import sys

import pytest
from known_process import PAGE, is_root, known_process

from gpuhmm.process.entries import WRITE_RULE
from gpuhmm.process.pagemap import pfns_visible
from gpuhmm.process.running import running_kernel

PR_CAPBSET_DROP = 24
CAP_SYS_PTRACE = 19
CAP_SYS_ADMIN = 21
CAP_PERFMON = 38  # newer kernels let it read as well


def gpuhmm(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-c", "from gpuhmm.cli import main; main()", "walk", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        **options,
    )


@pytest.fixture(scope="module")
def child(tmp_path_factory):
    with known_process(tmp_path_factory.mktemp("child")) as process:
        yield process


def test_a_table_and_what_must_be_said(child):
    ran = gpuhmm("--pid", child.pid, "--backend", "cpu", env={**os.environ, "COLUMNS": "200"})
    assert ran.returncode == 0, ran.stderr
    for words in (
        "pages/s",
        "cpu back end",
        WRITE_RULE,
        "left out",
        "holes",
        "writable",
        "PFNs are",
    ):
        assert words in ran.stdout
    start, end = child.areas["touched"]
    line = next(line for line in ran.stdout.splitlines() if f"{start:x}-{end:x}" in line)
    assert line.split()[:6] == [f"{start:x}-{end:x}", "rw-p", "256", "KiB", "64", "64"]


def test_a_narrow_terminal_gets_a_narrower_table(child):
    widths = []
    for columns in ("80", "200"):
        ran = gpuhmm("--pid", child.pid, "--backend", "cpu", env={**os.environ, "COLUMNS": columns})
        assert ran.returncode == 0, ran.stderr
        start, _ = child.areas["touched"]
        line = next(line for line in ran.stdout.splitlines() if line.startswith(f"{start:x}"))
        assert "rw-p" in line
        assert "256 KiB" in line
        widths.append(len(line))
    assert widths[0] < widths[1] - 20


def test_json_is_one_object_with_the_same_facts(child):
    ran = gpuhmm("--pid", child.pid, "--json", "--stop", "--backend", "cpu")
    assert ran.returncode == 0, ran.stderr
    summary = json.loads(ran.stdout)
    assert (summary["pid"], summary["backend"], summary["stopped"]) == (child.pid, "cpu", True)
    assert summary["write_rule"] == WRITE_RULE
    assert summary["changed"] is False
    choice = running_kernel()
    assert summary["walked_as"] == f"walked as {choice.profile.title} does: {choice.why}"
    assert (summary["profile"], summary["profile_lacks"]) == (choice.profile.name, choice.profile.lacks)
    start, end = child.areas["some"]
    mapping = next(m for m in summary["mappings"] if m["start"] == start)
    assert mapping["size"] == end - start
    assert (mapping["counts"]["present"], mapping["counts"]["holes"]) == (4, 60)
    assert child.state() != "T"


def test_it_walks_itself():
    ran = gpuhmm("--json", "--backend", "cpu")
    assert ran.returncode == 0, ran.stderr
    summary = json.loads(ran.stdout)
    assert summary["total"]["present"] > 1000


def test_a_request_changes_nothing_in_the_process(child):
    start, end = child.areas["untouched"]
    before = child.rss()
    ran = gpuhmm(
        "--pid", child.pid, "--start", hex(start), "--end", end, "--request", "write", "--backend", "cpu"
    )
    assert ran.returncode == 0, ran.stderr
    assert "modelled on a copy" in ran.stdout
    assert child.rss() == before


@pytest.mark.parametrize(
    "arguments",
    [
        ["--pid", "0"],
        ["--pid", "-4"],
        ["--pid", "me"],
        ["--start", "5"],
        ["--start", "zero"],
        ["--start", "0x2000", "--end", "0x1000"],
        ["--request", "exec"],
        ["--backend", "tpu"],
        ["--kernel", "v6.2"],
        ["--kernel", "v6.12:no-swap"],
    ],
)
def test_wrong_calls_are_usage_errors(arguments):
    ran = gpuhmm(*arguments)
    assert ran.returncode == 2
    assert "Error" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_an_unknown_kernel_is_told_the_known_ones():
    ran = gpuhmm("--kernel", "v6.2", env={**os.environ, "COLUMNS": "200"})
    assert ran.returncode == 2
    assert "one of v5.18, v6.1, v6.12, v6.17, v6.18, v7.0, v7.3" in ran.stderr


def test_a_kernel_may_be_given(child):
    ran = gpuhmm("--pid", child.pid, "--kernel", "v7.3:no-migration", "--backend", "reference")
    assert ran.returncode == 0, ran.stderr
    assert "\nwalked as v7.3 without MIGRATION does: as asked for\n" in ran.stdout


def test_what_cannot_be_read_is_one_line(child):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    cases = {
        ("--pid", gone.pid): f"no process with pid {gone.pid}",
        ("--pid", child.pid, "--end", PAGE): "has no mapping in",
        ("--pid", child.pid, "--request", "read"): "choose a part with --start and --end",
        ("--pid", os.getpid(), "--stop"): "must not be stopped",
    }
    for arguments, message in cases.items():
        ran = gpuhmm(*arguments)
        assert ran.returncode == 1
        assert ran.stderr.startswith("gpuhmm: ")
        assert message in ran.stderr
        assert ran.stderr.count("\n") == 1
        assert not ran.stdout


def test_a_kernel_thread_has_nothing_to_walk():
    try:
        status = pathlib.Path("/proc/2/stat").read_text()
    except OSError:
        pytest.skip("kernel threads are not visible here (a pid namespace)")
    if "kthreadd" not in status:
        pytest.skip("pid 2 is no kernel thread here (a pid namespace)")
    ran = gpuhmm("--pid", 2)
    assert ran.returncode == 1
    assert "kernel thread" in ran.stderr


def _drop_capabilities():
    """Lose what shows PFNs and opens other processes, at the exec that follows."""
    prctl = ctypes.CDLL(None).prctl
    for capability in (CAP_SYS_PTRACE, CAP_SYS_ADMIN, CAP_PERFMON):
        prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)


def test_without_privileges_pfns_are_numbered():
    ran = gpuhmm("--json", "--backend", "reference", preexec_fn=_drop_capabilities)
    assert ran.returncode == 0, ran.stderr
    summary = json.loads(ran.stdout)
    assert summary["pfns"] == "numbered"
    assert summary["total"]["present"] > 1000
    assert summary["total"]["longest_run"] is None
    assert any("CAP_SYS_ADMIN" in note for note in summary["notes"])


@pytest.mark.skipif(not is_root(), reason="a process with more rights than ours is made by root only")
def test_a_process_with_more_rights_may_not_be_read(child):
    ran = gpuhmm("--pid", child.pid, preexec_fn=_drop_capabilities)
    assert ran.returncode == 1
    assert "may not be read" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_root_with_the_capability_sees_real_pfns(child):
    if not is_root() or not pfns_visible():
        pytest.skip("the kernel shows PFNs with CAP_SYS_ADMIN only")
    ran = gpuhmm("--pid", child.pid, "--json", "--backend", "reference")
    assert json.loads(ran.stdout)["pfns"] == "real"


def test_the_documentation_states_the_rule_of_the_write_bit():
    page = pathlib.Path(__file__).parents[2] / "docs" / "processes.md"
    assert WRITE_RULE in " ".join(page.read_text().split())
