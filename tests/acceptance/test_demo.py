"""The main job as a person runs it: real processes, real Ray, real MLflow, real DVC, a real picture.

The steps are few, so that the pictures are poor; everything else is the demo that `make demo` runs.
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]  # whole demos, on whatever machine

STEPS = "12"
AFFINERY = [sys.executable, "-m", "affinery_app.cli.main"]


def affinery(*arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Runs a command of the command line, which must end with this exit code."""
    done = subprocess.run([*AFFINERY, *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done


def listed(*arguments: object) -> Any:
    return json.loads(affinery(*arguments, "--json").stdout)


def nothing_left_of(mark: str) -> bool:
    """Whether within ten seconds no process is left that inherited this variable: no Ray, no worker."""
    for _ in range(100):
        left = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                if mark.encode() in path.read_bytes():
                    left.append(path.parent.name)
            except OSError:  # it ended, or is another user's
                continue
        if not left:
            return True
        time.sleep(0.1)
    return False


def begun(space: Path, until: str) -> subprocess.Popen[str]:
    """A demo that runs, as soon as it has said this."""
    process = subprocess.Popen(
        [*AFFINERY, "demo", "--steps", STEPS, "-w", str(space)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | dict([mark_of(space).split("=")]),
    )
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if until in line:
            return process
    raise AssertionError(said)


def mark_of(space: Path) -> str:
    return f"AFFINERY_TEST_MARK={space.parent}"


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace whose demo was interrupted in its training, killed as it went on, and then run again."""
    space = tmp_path_factory.mktemp("demo") / "workspace with a space"
    interrupted = begun(space, "step 1/")
    interrupted.send_signal(signal.SIGINT)
    rest, _ = interrupted.communicate(timeout=90)
    assert interrupted.returncode == 130, rest
    assert "goes on from here" in rest
    assert nothing_left_of(mark_of(space))
    killed = begun(space, "going on from step")
    killed.kill()
    killed.wait()
    assert [job["state"] for job in listed("run", "--list", "-w", space)] == ["running", "queued"]
    done = affinery("demo", "--steps", STEPS, "-w", space)
    assert "going on from step" in done.stderr
    assert "certificate (bit-exact): nothing older changed" in done.stderr
    return space


def test_a_demo_interrupted_and_killed_finishes_when_it_is_run_again_and_every_task_is_learnt_once(
    demo: Path,
) -> None:
    assert [(task["name"], task["state"]) for task in listed("task", "list", "-w", demo)] == [
        ("digits", "learnt"),
        ("letters", "learnt"),
        ("animals", "learnt"),
    ]
    assert {record["ref"] for record in listed("adapter", "list", "-w", demo)} == {
        "digits@1",
        "letters@1",
        "animals@1",
    }


def test_running_the_demo_again_changes_nothing_but_the_picture(demo: Path) -> None:
    before = {noun: listed(noun, "list", "-w", demo) for noun in ("backbone", "dataset", "task", "adapter")}
    digest = json.loads((demo / "exports/everything-1/manifest.json").read_bytes())
    affinery("demo", "--steps", STEPS, "-w", demo)
    after = {noun: listed(noun, "list", "-w", demo) for noun in before}
    assert after == before
    assert json.loads((demo / "exports/everything-1/manifest.json").read_bytes()) == digest
    assert len(list((demo / "exports").iterdir())) == 1


def test_the_picture_shows_every_class_of_every_task(demo: Path) -> None:
    with Image.open(demo / "samples.png") as picture:
        assert picture.size[0] >= 10 * 16 * 3
        assert picture.size[1] >= 3 * 6 * 16 * 3
        assert len(set(picture.convert("L").getdata())) > 100


def test_two_tasks_learnt_together_and_the_third_afterwards(demo: Path) -> None:
    jobs = listed("run", "--list", "-w", demo)
    assert [(job["strategy"], job["tasks"], job["state"]) for job in jobs] == [
        ("co-trained", ["digits", "letters"], "done"),
        (None, ["animals"], "done"),  # chosen where it ran
    ]
    assert jobs[1]["needs"] == [jobs[0]["id"]]


def test_the_lineage_of_any_adapter_names_its_backbone_dataset_version_and_run(demo: Path) -> None:
    for task in ("digits", "letters", "animals"):
        adapter = listed("adapter", "show", task, "-w", demo)
        graph = listed("lineage", f"{task}@1", "-w", demo)
        names = {(node["kind"], node["name"]) for node in graph["nodes"]}
        assert {("backbone", "tiny-dit"), ("dataset", task), ("run", adapter["mlflow_run_id"])} <= names
        text = affinery("lineage", f"{task}@1", "-w", demo).stdout
        assert "tiny-dit@1" in text
        assert f"dataset {task}@1" in text
        assert adapter["mlflow_run_id"] in text


def test_every_adapter_carries_what_is_needed_to_train_it_again(demo: Path) -> None:
    for record in listed("adapter", "list", "-w", demo):
        made = record["provenance"]
        assert made["seed"] == made["recipe"]["seed"]
        assert made["recipe"]["steps"] == int(STEPS)
        assert len(made["backbone"]) == len(made["dataset"]) == len(made["environment"]) == 64
        assert made["code_version"].startswith(("git ", "affinery "))


def test_class_blocks_stand_end_to_end_after_the_null_row(demo: Path) -> None:
    table = listed("backbone", "show", "tiny-dit", "-w", demo)["class_table"]
    ends = [block["rows"] for block in table]
    assert [low for low, _ in ends[1:]] == [high for _, high in ends[:-1]]
    assert [high - low for low, high in ends[1:]] == [10, 10, 6]


def test_certificates_prove_the_backbone_the_null_row_and_every_older_adapter(demo: Path) -> None:
    last = listed("adapter", "show", "animals", "-w", demo)["certificates"][0]
    assert last["level"] == "bit-exact"
    assert last["results"]["backbone"]["unchanged"]
    assert last["results"]["null_row"]["unchanged"]
    assert {entry["ref"] for entry in last["results"]["adapters"]} == {"digits@1", "letters@1"}
    assert {entry["level"] for entry in last["results"]["replay"]} == {"bit-exact"}


def test_mlflow_holds_parameters_the_whole_loss_curve_and_the_pictures(demo: Path) -> None:
    logged = "SELECT DISTINCT step FROM metrics WHERE run_uuid = ? AND key = 'loss' ORDER BY step"
    with sqlite3.connect(demo / "mlflow/mlflow.db") as store:
        runs = dict(store.execute("SELECT run_uuid, status FROM runs").fetchall())
        assert set(runs.values()) == {"FINISHED"}
        tasks_named = "SELECT run_uuid FROM tags WHERE key = 'affinery.task'"
        of_tasks = [run for (run,) in store.execute(tasks_named)]
        assert len(of_tasks) == 3
        for run in of_tasks:
            steps = [step for (step,) in store.execute(logged, (run,))]
            assert steps == list(range(1, int(STEPS) + 1))
            query = "SELECT key, value FROM params WHERE run_uuid = ?"
            params = dict(store.execute(query, (run,)).fetchall())
            assert params["kind"] == "affiner"
            assert params["steps"] == STEPS
        models = {name for (name,) in store.execute("SELECT name FROM registered_models")}
    assert models == {"task.digits", "task.letters", "task.animals", "composition.everything"}
    kept = {path.name for path in (demo / "mlflow/artifacts").rglob("*") if path.is_file()}
    assert {"samples.png", "loss.png"} <= kept
    assert any(name.endswith(".safetensors") for name in kept)


def test_the_bundle_loads_with_three_lines_and_draws_any_class(demo: Path, tmp_path: Path) -> None:
    code = (
        "import sys, affinery\n"
        "model = affinery.load(sys.argv[1])\n"
        "images = affinery.draw(model, 'digits', '7', n=2, steps=2)\n"
        "assert images.shape == (2, 1, 16, 16), images.shape\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(demo / "exports/everything-1")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_a_bundle_with_one_byte_changed_does_not_draw_and_says_which_file(demo: Path, tmp_path: Path) -> None:
    import shutil

    bundle = tmp_path / "bundle"
    shutil.copytree(demo / "exports/everything-1", bundle)
    target = bundle / "adapters/1.safetensors"
    content = bytearray(target.read_bytes())
    content[-1] ^= 1
    target.write_bytes(content)
    done = affinery("sample", bundle, "-o", tmp_path / "x.png", code=2)
    assert "adapters/1.safetensors has been changed" in done.stderr
    assert not (tmp_path / "x.png").exists()


READS = (
    ["adapter", "list"],
    ["task", "show", "digits"],
    ["lineage", "animals@1"],
    ["backbone", "list"],
    ["dataset", "show", "letters"],
    ["run", "--list"],
)
ONLY_LIGHT_IMPORTS = """
import sys
from affinery_app.cli import main
sys.argv = ["affinery", *sys.argv[1:]]
try:
    main.main()
except SystemExit as end:
    assert not end.code, end.code
heavy = {"torch", "diffusers", "timm", "ray", "mlflow", "dvc", "alembic", "numpy", "PIL"} & sys.modules.keys()
assert not heavy, heavy
"""


@pytest.mark.parametrize("command", READS, ids=" ".join)
def test_commands_that_only_read_the_registry_import_nothing_heavy(demo: Path, command: list[str]) -> None:
    line = [sys.executable, "-c", ONLY_LIGHT_IMPORTS, *command, "-w", str(demo)]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_person_learns_a_folder_of_images_by_hand(demo: Path, tmp_path: Path) -> None:
    folder = tmp_path / "my images"
    for label, level in (("weiß", 220), ("schwarz é", 40)):
        (folder / label).mkdir(parents=True)
        for i in range(8):
            Image.effect_noise((20 + i, 24), 30).point(
                lambda v, level=level: min(255, v * level // 128)
            ).save(folder / label / f"{i}.png")
    affinery("dataset", "add", "my data", folder, "-w", demo, "--licence", "mine")
    affinery(
        "task", "add", "shades", "--dataset", "my data", "--backbone", "tiny-dit", "--steps", "6", "-w", demo
    )
    done = affinery("run", "-w", demo)
    assert "certificate (bit-exact)" in done.stderr
    affinery("compose", "mixed", "-t", "shades", "-t", "digits", "-w", demo)
    bundle = listed("export", "mixed", "--out", tmp_path / "out", "-w", demo)["path"]
    drawn = listed("sample", bundle, "-o", tmp_path / "drawn.png", "-n", "1", "--steps", "2")
    assert drawn["images"] == 12
    assert Path(drawn["picture"]).stat().st_size > 0


def test_a_dataset_changed_after_it_was_pinned_is_refused_and_named(demo: Path) -> None:
    record = listed("dataset", "show", "digits", "-w", demo)
    pack = demo / "data" / record["dvc_path"] / "images.zip"
    pack.chmod(0o644)
    whole = pack.read_bytes()
    changed = bytearray(whole)
    changed[changed.index(b"IDAT", len(changed) // 2)] ^= 0xFF  # a byte of an image
    # DVC may have linked the file to its cache: a new file in its place leaves the cache alone.
    pack.unlink()
    pack.write_bytes(changed)
    try:
        job = listed("task", "train", "digits", "--steps", "6", "-w", demo)
        done = affinery("run", "-w", demo, code=1)
        assert "not the one that was pinned" in done.stderr
        assert ".png" in done.stderr
        states = {entry["id"]: entry["state"] for entry in listed("run", "--list", "-w", demo)}
        assert states[job["id"]] == "dead"
        assert listed("task", "show", "digits", "-w", demo)["state"] == "learnt"
    finally:
        pack.write_bytes(whole)
