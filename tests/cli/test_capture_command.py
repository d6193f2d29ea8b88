"""``gpuhmm capture``, ``info`` and ``walk`` of what they wrote, as their users call them."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from guest import CR3, guest, write_image, write_maps
from known_process import known_process
from table_images import ADDRESS, LEAF, TABLE, TableImage, elf_core, map_kernel
from typer.testing import CliRunner

import gpuhmm
from gpuhmm.cli import app
from gpuhmm.process import stopped
from gpuhmm.snapshot import is_snapshot, load_snapshot


def run(*arguments):
    ran = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert ran.exit_code == 0, (ran.output, ran.exception)
    return ran.output


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    return write_image(guest(), tmp_path_factory.mktemp("guest") / "memory.raw")


@pytest.fixture
def maps(tmp_path):
    """Return the recorded areas as a file in the form of /proc/PID/maps."""
    return write_maps(guest(), tmp_path / "maps")


def walked(*arguments):
    """Return the counts of a walk, and what it calls itself."""
    said = json.loads(run("walk", *arguments, "--backend", "cpu", "--json"))
    return said["total"], said["source"]


def test_a_dump_and_its_snapshot_walk_alike(image, maps, tmp_path):
    dump = ["--dump", image, "--cr3", hex(CR3), "--maps", maps]
    said = run("capture", *dump, "-o", tmp_path / "saved")
    assert "287 mappings" in said
    direct, source = walked(*dump)
    assert source == f"CR3 {CR3:#x} of {image}"
    assert direct["present"] > 20_000
    again, source = walked(tmp_path / "saved")
    assert again == direct
    assert f"{CR3:#x}" in source
    part = ["--start", "0x10033ff0000", "--end", "0x1004fa02000"]
    assert walked(*dump, *part)[0] == walked(tmp_path / "saved", *part)[0]
    assert "\nwalked as v6.1 does: nothing says which kernel it is" in said
    assert "\nwalked as v6.1 does: nothing says which kernel it is" in run("walk", tmp_path / "saved")


def test_a_kernel_given_for_a_dump_is_kept_by_its_snapshot(image, tmp_path):
    dump = ["--dump", image, "--cr3", hex(CR3), "--kernel", "v6.12:no-device-private"]
    walked_as = "walked as v6.12 without DEVICE_PRIVATE does: as asked for"
    assert f"\n{walked_as}\n" in run("capture", *dump, "-o", tmp_path / "saved")
    assert f"\n{walked_as}\n" in run("walk", *dump, "--backend", "reference")
    assert f"\n{walked_as}\n" in run("walk", tmp_path / "saved", "--backend", "reference")
    said = json.loads(run("info", tmp_path / "saved", "--json"))
    assert (said["kernel"], said["kernel_why"]) == ("v6.12 without DEVICE_PRIVATE", "as asked for")


def test_info_of_a_snapshot_and_of_a_dump(image, tmp_path):
    run("capture", "--dump", image, "--cr3", hex(CR3), "-o", tmp_path / "saved")
    said = json.loads(run("info", tmp_path / "saved", "--json"))
    assert (said["cr3"], said["tables"], said["checksums"]) == (hex(CR3), 177, "all fit")
    assert said["origin"]["kind"] == "dump"
    assert "checksums: not checked" in run("info", tmp_path / "saved", "--no-verify")
    said = json.loads(run("info", image, "--json"))
    assert [root["cr3"] for root in said["cr3_candidates"]] == [hex(CR3)]
    assert said["release"] == "not found"
    assert f"cr3 {CR3:#x}, levels 4, user_entries 4" in run("info", image)


def test_without_cr3_each_candidate_is_captured(tmp_path):
    image = TableImage(64)
    image.set((1 << 64) - (1 << 31), 1, 5 << 12 | LEAF)
    image.set(0x1000, 1, 6 << 12 | LEAF)
    (tmp_path / "one").write_bytes(image.bytes())
    run("capture", "--dump", tmp_path / "one", "-o", tmp_path / "saved")
    assert load_snapshot(tmp_path / "saved").space.root_pfn == 1
    image.data[40] = image.data[1]
    image.data[41, 511] = image.data[1, 511]  # no user half
    (tmp_path / "two").write_bytes(image.bytes())
    run("capture", "--dump", tmp_path / "two", "-o", tmp_path / "several")
    assert sorted(path.name for path in (tmp_path / "several").iterdir()) == ["cr3-0x1000", "cr3-0x28000"]
    (tmp_path / "none").write_bytes(bytes(1 << 16))
    failed = CliRunner().invoke(app, ["capture", "--dump", str(tmp_path / "none"), "-o", str(tmp_path / "x")])
    assert "no top table" in str(failed.exception)


def test_a_core_gives_its_processes_and_not_only_those_that_ran(tmp_path):
    """The processors: one is idle, one never ran, and one has a table that no scan finds."""
    image = TableImage(64)
    map_kernel(image)
    image.set(0x1000, 1, 6 << 12 | LEAF)
    image.data[40] = image.data[1]
    image.data[41, 256:] = image.data[1, 256:]
    image.data[42, 0] = image.data[1, 0]
    (tmp_path / "elf").write_bytes(elf_core([(0, image.bytes())], [41 << 12, 0, 40 << 12 | 5, 42 << 12]))
    said = run("capture", "--dump", tmp_path / "elf", "-o", tmp_path / "several")
    names = ["cr3-0x1000", "cr3-0x28000", "cr3-0x2a000"]
    assert sorted(path.name for path in (tmp_path / "several").iterdir()) == names
    assert "note: 1 top tables of the kernel alone were left out" in said


def test_of_the_two_tables_of_a_process_the_kernels_is_captured(tmp_path):
    image = TableImage(64, root=2)
    image.next = 8
    map_kernel(image)
    image.set(0x1000, 1, 6 << 12 | LEAF)
    image.data[3] = image.data[2]
    (tmp_path / "memory").write_bytes(image.bytes())
    said = json.loads(run("info", tmp_path / "memory", "--json"))
    assert [(root["cr3"], root["pti_pair"]) for root in said["cr3_candidates"]] == [
        ("0x2000", "0x3000"),
        ("0x3000", "0x2000"),
    ]
    said = run("capture", "--dump", tmp_path / "memory", "-o", tmp_path / "saved")
    assert load_snapshot(tmp_path / "saved").space.root_pfn == 2
    assert "note: 1 top tables of user mode" in said


def test_candidates_that_cannot_be_read_are_said(tmp_path):
    """User entries without anything behind them: each candidate is left out, and that is a failure."""
    image = TableImage(64)
    map_kernel(image)
    image.data[1, 0] = 30 << 12 | TABLE
    image.data[40] = image.data[1]
    (tmp_path / "memory").write_bytes(image.bytes())
    command = ["capture", "--dump", str(tmp_path / "memory"), "-o", str(tmp_path / "several")]
    failed = CliRunner().invoke(app, command)
    assert "none of the 2 top tables" in str(failed.exception)
    assert failed.output.count("was left out") == 2


def test_where_and_how_a_raw_dump_has_its_entries(tmp_path):
    """A hole that was cut out, and AMD's encryption bit in every entry."""
    image = TableImage(2048, root=1040)
    map_kernel(image)
    image.set(0x1000, 1, 1030 << 12 | LEAF)
    image.data[(image.data & np.uint64(1)) != 0] |= np.uint64(1 << 47)
    memory = image.bytes()
    (tmp_path / "memory").write_bytes(memory[: 512 << 12] + memory[1024 << 12 :])
    dump = ["--dump", tmp_path / "memory", "--cr3", hex(1040 << 12)]
    told = ["--segments", "0:0x200000@0,0x400000:0x400000@0x200000", "--sme-mask", hex(1 << 47)]
    assert walked(*dump, *told)[0]["present"] == 1
    assert run("info", tmp_path / "memory", *told).count("cr3 0x410000") == 1
    assert "--segments" in run("info", tmp_path / "memory")
    failed = CliRunner().invoke(app, ["walk", *(str(word) for word in dump), *told[:2]])
    assert "--sme-mask 0x800000000000" in str(failed.exception)


def test_prot_none_of_an_old_kernel(tmp_path):
    image = TableImage(64)
    image.set(0x1000, 1, 6 << 12 | LEAF)
    image.set(0x2000, 1, 7 << 12 | 0x120)
    (tmp_path / "memory").write_bytes(image.bytes())
    dump = ["capture", "--dump", tmp_path / "memory", "--cr3", "0x1000", "--levels", "4"]
    assert "--upright-protnone" in run(*dump, "-o", tmp_path / "saved")
    said = run(*dump, "-o", tmp_path / "again", "--upright-protnone")
    assert "--upright-protnone" not in said
    assert load_snapshot(tmp_path / "again").space.entry(0x2000, 1) == ~(7 << 12) & ADDRESS | 0x120


def test_live_processes_and_several_of_them(tmp_path):
    # Stopped: it may still be on its way to where it waits.
    with known_process(tmp_path) as child, stopped(child.pid):
        run("capture", "--pid", child.pid, "-o", tmp_path / "one", "--stop")
        live, _ = walked("--pid", child.pid)
        run("capture", "--pid", child.pid, "--pid", os.getpid(), "-o", tmp_path / "several")
    saved, source = walked(tmp_path / "one")
    assert saved == live
    assert source == f"snapshot {tmp_path / 'one'}"
    for pid in (child.pid, os.getpid()):
        assert is_snapshot(tmp_path / "several" / f"pid-{pid}")
    before, after = load_snapshot(tmp_path / "one"), load_snapshot(tmp_path / "several" / f"pid-{child.pid}")
    for one, other in zip(before.space.tables(), after.space.tables(), strict=True):
        assert (one == other).all()


def test_a_snapshot_is_replaced_only_on_demand(image, tmp_path):
    command = ["capture", "--dump", image, "--cr3", hex(CR3), "-o", tmp_path / "saved"]
    run(*command)
    failed = CliRunner().invoke(app, [str(word) for word in command])
    assert isinstance(failed.exception, FileExistsError)
    run(*command, "--force")


@pytest.mark.parametrize(
    "options",
    [
        ["walk", "--pid", "1", "--dump", "x"],
        ["walk", "somewhere", "--pid", "1"],
        ["walk", "--cr3", "0x1000"],
        ["walk", "--dump", "x", "--stop"],
        ["walk", "somewhere", "--kernel", "v6.12"],
        ["map", "--kernel", "v6.2", "-o", "x.png"],
        ["capture", "--kernel", "v6.2", "-o", "y"],
        ["faults", "--kernel", "v6.2"],
        ["coalesce", "stream", "--kernel", "v6.2"],
        ["walk", "--cr3", "abc", "--dump", "x"],
        ["capture", "--pid", "1", "--dump", "x", "-o", "y"],
        ["capture", "--levels", "5", "-o", "y"],
        ["walk", "--sme-mask", "0x800000000000"],
        ["walk", "--upright-protnone"],
        ["map", "--segments", "0:4096@0", "-o", "x.png"],
        ["walk", "--dump", "x", "--segments", "0:4096"],
        ["walk", "--dump", "x", "--segments", "0:4096@0,"],
    ],
)
def test_options_that_do_not_go_together(options):
    assert CliRunner().invoke(app, options).exit_code == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["walk", "nothing"], "must be the folder of a snapshot"),
        (["walk", "--dump", "nothing", "--cr3", "0x1000"], "No such file"),
        (["info", "nothing"], "No such file"),
    ],
)
def test_messages_are_one_line(options, message, tmp_path):
    ran = subprocess.run(
        [sys.executable, "-c", "from gpuhmm.cli import main; main()", *options],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.path.dirname(os.path.dirname(gpuhmm.__file__))},
    )
    assert ran.returncode == 1
    assert message in ran.stderr
    assert ran.stderr.count("\n") == 1
