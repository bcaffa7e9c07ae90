"""The main job on the whole team set-up: every process of docker-compose.yml, by the file's own commands."""

from __future__ import annotations

import json
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import boto3
import pytest

from tests import learning_world as world
from tests.integration.team.conftest import Team

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.postgres, pytest.mark.timeout(600)]
TASKS = ("shapes", "shades")
LOOK = """
import json, sys, time
from affinery_app.wiring import open_workspace
from orchestration import queue
from registry.errors import RegistryBusy, RegistryUnreachable

space, enough = open_workspace(None), sys.argv[1]
while True:
    time.sleep(0.2)
    try:
        with space.sessions.read() as session:
            jobs = queue.list_all(session)
    except (RegistryBusy, RegistryUnreachable):
        continue
    left = any(job.state in ("queued", "running") for job in jobs)
    if not left or (enough == "training" and any(job.state == "running" and job.progress for job in jobs)):
        break
print(json.dumps([[job.state, job.error] for job in jobs]))
"""
"""In a container: looks at the queue until nothing is left to do, or a job has told of its first steps."""


@pytest.fixture(scope="module")
def learnt(team: Team, tmp_path_factory: pytest.TempPathFactory) -> Team:
    """Two datasets became two tasks, learnt on the cluster, composed and exported."""
    source = tmp_path_factory.mktemp("source")
    world.tiny_backbone(source / "tiny.safetensors")
    for seed, name in enumerate(TASKS):
        world.image_folder(source / name, "x", "y", seed=seed)
    team.copy_in(source, "/tmp/in")
    team.affinery("backbone", "add", "/tmp/in/tiny.safetensors", "--name", "tiny")
    for name in TASKS:
        team.affinery("dataset", "add", name, f"/tmp/in/{name}", "--licence", "CC0-1.0")
    recipe = ("--rank", "2", "--steps", "8", "--batch", "4", "--set", "warmup=2")
    team.affinery("task", "add", *TASKS, "--backbone", "tiny", *recipe)
    until_done(team)
    team.affinery("compose", "both", "--task", "shapes", "--task", "shades")
    team.affinery("export", "both", "--out", "/var/lib/affinery/exports/both")
    return team


def until(team: Team, enough: str) -> list[list[str | None]]:
    """Waits until a job trains, or all have ended, in one process that asks again. → states and errors"""
    with_secrets = "/usr/local/lib/affinery/entrypoint.sh"
    found: list[list[str | None]] = json.loads(team.run("worker", with_secrets, "python", "-c", LOOK, enough))
    return found


def until_done(team: Team) -> None:
    ended = until(team, "done")
    assert {state for state, _ in ended} == {"done"}, ended


def told(team: Team, service: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
    """→ the status and the JSON of an answer of a published port"""
    host, port = team.addresses[service].split(":")
    connection = HTTPConnection(host, int(port), timeout=30)
    try:
        sent = {"Content-Type": "application/json", **headers}
        connection.request("GET" if body is None else "POST", path, json.dumps(body) if body else None, sent)
        answer = connection.getresponse()
        content = answer.read()
        is_json = "json" in (answer.getheader("Content-Type") or "")
        return answer.status, json.loads(content) if is_json else content
    finally:
        connection.close()


def objects(team: Team, bucket: str) -> list[str]:
    """The keys of a bucket, read with the store's own key from outside."""
    client = boto3.client(
        "s3",
        endpoint_url=f"http://{team.addresses['store']}",
        aws_access_key_id=team.secret("STORE_ACCESS_KEY"),
        aws_secret_access_key=team.secret("STORE_SECRET_KEY"),
        region_name="us-east-1",
    )
    return [entry["Key"] for entry in client.list_objects_v2(Bucket=bucket).get("Contents", [])]


def test_what_was_learnt_on_the_cluster_is_in_the_registry_and_verifies(learnt: Team) -> None:
    found = {entry["name"]: entry for entry in learnt.affinery("adapter", "list")}
    assert set(found) == set(TASKS)
    assert learnt.affinery("verify")["findings"] == []


def test_the_training_ran_in_the_ray_workers_container_and_not_in_the_affinery_workers(learnt: Team) -> None:
    started = "ls /tmp/ray/session_latest/logs | grep -c '^worker-.*out' || true"
    assert int(learnt.run("ray-worker", "sh", "-c", started)) > 0
    nodes = json.loads(learnt.run("worker", "ray", "list", "nodes", "--format=json"))
    cpus = {node["node_ip"]: node["resources_total"].get("CPU", 0) for node in nodes}
    assert sorted(cpus.values()) == [0, 0, 2]


def test_every_blob_is_in_the_store(learnt: Team) -> None:
    digests = {key.replace("/", "") for key in objects(learnt, "affinery-blobs")}
    adapters = {entry["digest"] for entry in learnt.affinery("adapter", "list")}
    assert adapters < digests


def test_mlflow_holds_the_runs_and_their_files_lie_in_the_store(learnt: Team) -> None:
    _, answer = told(learnt, "mlflow", "/api/2.0/mlflow/runs/search", {"experiment_ids": ["1"]})
    runs = [run for run in answer["runs"] if run["info"]["run_name"] in TASKS]
    assert {run["info"]["run_name"] for run in runs} == set(TASKS)
    assert {run["info"]["status"] for run in runs} == {"FINISHED"}
    assert all("loss" in {metric["key"] for metric in run["data"]["metrics"]} for run in runs)
    kept = objects(learnt, "mlflow")
    for run in runs:
        mine = [key for key in kept if run["info"]["run_id"] in key]
        assert any(key.endswith("samples.png") for key in mine), mine
        assert any(key.endswith(".safetensors") for key in mine), mine


def test_datasets_have_their_further_copy_in_the_store(learnt: Team) -> None:
    pins = {entry["name"]: entry for entry in learnt.affinery("dataset", "list")}
    keys = objects(learnt, "affinery-data")
    for name in TASKS:
        md5 = pins[name]["dvc_md5"]
        assert any(key.endswith(f"{md5[:2]}/{md5[2:]}") for key in keys), (name, md5, keys)


def test_the_service_answers_over_http_to_whoever_shows_the_token(learnt: Team) -> None:
    assert told(learnt, "service", "/healthz") == (200, {"status": "ok"})
    assert told(learnt, "service", "/v1/adapters")[0] == 401
    token = learnt.secret("SERVICE_TOKEN")
    status, page = told(learnt, "service", "/v1/adapters", Authorization=f"Bearer {token}")
    assert status == 200
    assert {entry["name"] for entry in page["items"]} == set(TASKS)


def test_mlflow_refuses_a_host_name_that_it_was_not_told(learnt: Team) -> None:
    path = "/api/2.0/mlflow/experiments/get?experiment_id=0"
    assert told(learnt, "mlflow", path)[0] == 200
    assert told(learnt, "mlflow", path, Host="elsewhere.example")[0] == 403


def test_the_bundle_draws_from_both_tasks(learnt: Team, tmp_path: Path) -> None:
    draw = ("--task", "shapes", "--task", "shades", "-n", "1", "--out", "/tmp/drawn.png")
    learnt.run("worker", "affinery", "sample", "/var/lib/affinery/exports/both", *draw)
    assert learnt.run("worker", "sh", "-c", "head -c 4 /tmp/drawn.png | tail -c 3") == "PNG"


def test_no_process_runs_as_root_but_the_first_of_each_container(learnt: Team) -> None:
    for service in ("postgres", "store", "mlflow", "ray-head", "ray-worker", "worker", "service"):
        lines = learnt.run(service, "ps", "-eo", "pid=,user=").split("\n")
        owners = dict(line.split() for line in lines if line.strip())
        assert owners.pop("1") == "root"  # what stands in for the engine's own init
        assert "root" not in owners.values(), (service, owners)


def test_no_secret_is_in_a_log_or_in_the_arguments_of_a_process(learnt: Team) -> None:
    env = json.loads((learnt.folder / "env.json").read_text())
    hidden = [value for name, value in env.items() if len(value) == 48]
    assert len(hidden) == 5
    for log in (learnt.folder / "logs").iterdir():
        assert not any(value in log.read_text(errors="replace") for value in hidden), log.name
    for command in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            said = command.read_text(errors="replace")
        except OSError:
            continue
        assert not any(value in said for value in hidden), said


def test_postgres_the_store_and_mlflow_are_killed_under_a_training_and_nothing_of_it_is_missing(
    learnt: Team, tmp_path: Path
) -> None:
    world.image_folder(tmp_path / "late", "x", "y", seed=9)
    learnt.copy_in(tmp_path, "/tmp/later")
    learnt.affinery("dataset", "add", "late", "/tmp/later/late", "--licence", "CC0-1.0")
    recipe = ("--rank", "2", "--steps", "500", "--batch", "4", "--set", "warmup=2")
    learnt.affinery("task", "add", "late", "--backbone", "tiny", *recipe)
    assert "running" in {state for state, _ in until(learnt, "training")}
    for service in ("postgres", "store", "mlflow"):
        learnt.kill(service)
    for service in ("postgres", "store", "mlflow", "service"):
        assert learnt.until_healthy(service)["state"] == "running"
    until_done(learnt)
    learnt.affinery("reconcile")
    assert {entry["name"] for entry in learnt.affinery("adapter", "list")} == {*TASKS, "late"}
    assert learnt.affinery("verify")["findings"] == []
    _, answer = told(learnt, "mlflow", "/api/2.0/mlflow/runs/search", {"experiment_ids": ["1"]})
    (run,) = [run for run in answer["runs"] if run["info"]["run_name"] == "late"]
    assert run["info"]["status"] == "FINISHED"
    (loss,) = [metric for metric in run["data"]["metrics"] if metric["key"] == "loss"]
    assert loss["step"] == 500
    mine = [key for key in objects(learnt, "mlflow") if run["info"]["run_id"] in key]
    assert any(key.endswith("samples.png") for key in mine), mine
    assert any(key.endswith(".safetensors") for key in mine), mine
