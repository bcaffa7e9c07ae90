"""docker-compose.yml and its Dockerfile, as far as they can be held to account without a container engine."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = ROOT / "docker-compose.yml"
FILE: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())
SERVICES: dict[str, dict[str, Any]] = FILE["services"]
ENTRYPOINT = ROOT / "docker" / "entrypoint.sh"

INTERPOLATION = re.compile(r"\$\{([A-Z][A-Z0-9_]*)(?::?[-?][^}]*)?\}")


def dotenv_example() -> dict[str, str]:
    """The names and defaults of .env.example."""
    lines = (ROOT / ".env.example").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def words(service: dict[str, Any]) -> list[str]:
    """A service's command as words, those of `sh -c` scripts split too."""
    command = service.get("command", [])
    parts = [command] if isinstance(command, str) else list(command)
    return [word for part in parts for word in (shlex.split(part) if " " in part else [part])]


def affinery_calls(argv: list[str]) -> list[list[str]]:
    """What follows each `affinery` among the words, up to the end of that shell command."""
    spaced = [part for word in argv for part in ((word[:-1], ";") if word.endswith(";") else (word,))]
    calls = []
    for index, word in enumerate(spaced):
        if word == "affinery":
            rest = spaced[index + 1 :]
            ends = [place for place, token in enumerate(rest) if token in {";", "&&", "||"}]
            calls.append(rest[: ends[0]] if ends else rest)
    return calls


def test_the_file_is_valid_by_the_compose_specification() -> None:
    check = [
        sys.executable,
        "-m",
        "check_jsonschema",
        "--builtin-schema",
        "vendor.compose-spec",
        str(COMPOSE),
    ]
    result = subprocess.run(check, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_compose_client_itself_accepts_the_file_where_there_is_one() -> None:
    client = compose_client()
    if client is None:
        # Then the specification's schema, above, and the rules below are what can be known here.
        return
    secrets = {name: value or "x" for name, value in dotenv_example().items()}
    config = [*client, "--file", str(COMPOSE), "--profile", "gpu", "config", "--quiet"]
    result = subprocess.run(
        config, env={**os.environ, **secrets}, capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stderr


def compose_client() -> list[str] | None:
    """How to call Docker Compose here, if at all: as a plugin or a program, but not the retired version 1."""
    for client in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(client[0]):
            version = subprocess.run(
                [*client, "version", "--short"], capture_output=True, text=True, timeout=60, check=False
            )
            if version.returncode == 0 and not version.stdout.startswith("1."):
                return client
    return None


def test_the_team_has_every_part_it_needs() -> None:
    needed = {
        "postgres",
        "mlflow",
        "store",
        "store-init",
        "migrate",
        "ray-head",
        "ray-worker",
        "worker",
        "service",
    }
    assert needed <= set(SERVICES)


def test_a_gpu_node_is_there_only_when_asked_for() -> None:
    asked_for = {name for name, service in SERVICES.items() if service.get("profiles")}
    assert asked_for == {"ray-worker-gpu"}
    devices = SERVICES["ray-worker-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert devices[0]["capabilities"] == ["gpu"]


@pytest.mark.parametrize("name", SERVICES)
def test_what_a_service_waits_for_exists_and_can_come_true(name: str) -> None:
    for other, how in SERVICES[name].get("depends_on", {}).items():
        assert other in SERVICES, f"{name} waits for {other}, which is no service"
        assert not SERVICES[other].get("profiles"), f"{name} waits for {other}, which may not be started"
        if how["condition"] == "service_healthy":
            assert "healthcheck" in SERVICES[other], f"{name} waits for the health of {other}, which has none"
        else:
            assert how["condition"] == "service_completed_successfully"
            assert SERVICES[other]["restart"] == "no", f"{other} never completes: it is restarted"


def test_no_service_waits_for_itself_through_others() -> None:
    def reachable(name: str, seen: frozenset[str]) -> None:
        assert name not in seen, f"{name} waits for itself"
        for other in SERVICES[name].get("depends_on", {}):
            reachable(other, seen | {name})

    for name in SERVICES:
        reachable(name, frozenset())


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_that_stays_up_has_a_health_check_and_is_restarted(name: str) -> None:
    service = SERVICES[name]
    if service["restart"] == "no":
        return
    assert service["restart"] == "unless-stopped"
    assert service["healthcheck"]["test"][0] in {"CMD", "CMD-SHELL"}


@pytest.mark.parametrize("name", SERVICES)
def test_every_image_is_pinned_to_a_version(name: str) -> None:
    image = SERVICES[name]["image"]
    assert re.fullmatch(r"[a-z0-9./-]+:v?\d+\.\d+[\w.-]*", image), f"{image} is not pinned"


def test_our_own_image_carries_our_own_version() -> None:
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version is not None
    ours = {service["image"] for service in SERVICES.values() if "build" in service}
    assert ours == {f"affinery:{version[1]}"}


@pytest.mark.parametrize("name", SERVICES)
def test_ports_are_published_on_the_loopback_address_only(name: str) -> None:
    for port in SERVICES[name].get("ports", []):
        assert isinstance(port, str)
        assert port.startswith("127.0.0.1:"), f"{name} publishes {port} to the world"


@pytest.mark.parametrize("name", SERVICES)
def test_no_secret_stands_in_a_services_configuration(name: str) -> None:
    for variable, value in SERVICES[name].get("environment", {}).items():
        if re.search(r"PASSWORD|SECRET|TOKEN", variable):
            assert str(value).startswith("/run/secrets/") or value == "token", (
                f"{name}: {variable} is a literal"
            )
            granted = SERVICES[name].get("secrets", [])
            assert value == "token" or Path(str(value)).name in granted, f"{name} is not given {value}"
        assert not re.search(r"://[^/@\s]+:[^/@\s]+@", str(value)), (
            f"{name}: {variable} has a password in its URL"
        )
    for word in words(SERVICES[name]):
        assert not re.search(r"://[^/@\s]+:[^/@\s]+@", word), f"{name}: a password in the command"


def test_every_secret_is_used_comes_from_the_environment_and_has_no_default() -> None:
    used = {secret for service in SERVICES.values() for secret in service.get("secrets", [])}
    assert used == set(FILE["secrets"])
    example = dotenv_example()
    for name, source in FILE["secrets"].items():
        assert set(source) == {"environment"}, f"{name} comes from elsewhere"
        assert example[source["environment"]] == "", f".env.example gives {source['environment']} away"


def test_every_setting_in_the_file_is_in_the_example_and_the_other_way_round() -> None:
    asked = set(INTERPOLATION.findall(COMPOSE.read_text()))
    asked |= {source["environment"] for source in FILE["secrets"].values()}
    assert asked == set(dotenv_example())


def test_named_volumes_are_declared_and_mounted_files_exist() -> None:
    mounted = [
        volume["source"] if isinstance(volume, dict) else volume.split(":")[0]
        for service in SERVICES.values()
        for volume in service.get("volumes", [])
    ]
    assert {source for source in mounted if not source.startswith(".")} == set(FILE["volumes"])
    for source in mounted:
        assert not source.startswith(".") or (ROOT / source).is_file(), f"{source} does not exist"


def test_every_affinery_command_in_the_file_is_a_real_one() -> None:
    from tests.command_line import assert_command_exists

    calls = []
    for service in (each for each in SERVICES.values() if "build" in each):
        calls += affinery_calls(words(service))
        calls += affinery_calls(list(service.get("healthcheck", {}).get("test", [])))
    assert {call[0] for call in calls} >= {"migrate", "worker", "serve"}
    for call in calls:
        assert_command_exists(call)


def test_every_affinery_variable_in_the_file_is_a_real_setting() -> None:
    from affinery_app import settings

    known = {*settings.VARIABLES.values(), "AFFINERY_WORKSPACE", "AFFINERY_TOKEN"}
    for name, service in SERVICES.items():
        variables = [variable.removesuffix("_FILE") for variable in service.get("environment", {})]
        given = {variable for variable in variables if variable.startswith("AFFINERY_")}
        assert given <= known, f"{name} sets {sorted(given - known)}, which Affinery does not know"


def test_mlflow_answers_to_the_name_the_others_call_it_by() -> None:
    port = SERVICES["worker"]["environment"]["AFFINERY_TRACKING_URI"].removeprefix("http://")
    allowed = next(word for word in words(SERVICES["mlflow"]) if word.startswith("--allowed-hosts="))
    assert port in allowed.removeprefix("--allowed-hosts=").split(",")


def test_no_service_runs_as_root_or_keeps_a_capability_but_the_one_that_hands_a_volume_over() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    assert re.findall(r"^USER (\S+)", dockerfile, re.MULTILINE)[-1] == "affinery"
    for name, service in SERVICES.items():
        assert service["cap_drop"] == ["ALL"], name
        assert "no-new-privileges:true" in service["security_opt"], name
        if name == "store-volume":
            assert (service["user"], service["cap_add"], service["restart"]) == ("0:0", ["CHOWN"], "no")
            continue
        assert "cap_add" not in service, name
        user = service.get("user", "affinery" if "build" in service else "root")
        assert user.split(":")[0] not in {"root", "0"}, f"{name} runs as root"


def test_everything_the_dockerfile_copies_exists_and_reaches_the_build() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    let_in = {
        line.removeprefix("!")
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    copies = [line.split()[1:-1] for line in re.findall(r"^COPY (?!--from).*$", dockerfile, re.MULTILINE)]
    sources = [source for line in copies for source in line]
    assert sources
    for source in sources:
        assert (ROOT / source).exists(), f"{source} does not exist"
        assert source.split("/")[0] in let_in, f"{source} is kept out by .dockerignore"


def test_every_package_that_is_installed_is_copied_into_the_image() -> None:
    packages = re.search(r"^packages = \[(.+)\]$", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert packages is not None
    dockerfile = (ROOT / "Dockerfile").read_text()
    for package in re.findall(r'"(\w+)"', packages[1]):
        assert f"COPY {package} {package}\n" in dockerfile


def test_the_manifest_for_larger_clusters_says_what_the_compose_file_says() -> None:
    guide = (ROOT / "docs" / "guides" / "larger-clusters.md").read_text()
    (block,) = re.findall(r"^```yaml\n(.*?)^```", guide, re.DOTALL | re.MULTILINE)
    claim, cluster, deployment = yaml.safe_load_all(block)
    assert (claim["kind"], cluster["kind"], deployment["kind"]) == (
        "PersistentVolumeClaim",
        "RayCluster",
        "Deployment",
    )
    ray = re.search(r"^ray==(\S+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert ray is not None
    assert cluster["spec"]["rayVersion"] == ray[1]
    groups = [cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"], deployment["spec"]]
    version = SERVICES["worker"]["image"].split(":")[1]
    for pod in (group["template"]["spec"] for group in groups):
        (container,) = pod["containers"]
        assert container["image"].endswith(f"/affinery:{version}")
        assert pod["securityContext"]["runAsUser"] == 10001
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert container["volumeMounts"][0]["mountPath"] == "/var/lib/affinery"
        assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
        assert {entry["name"] for entry in container["env"]} >= {
            name for name in FILE["x-ray-environment"] if not name.startswith("RAY_AUTH")
        }
    told = {entry["name"] for entry in deployment["spec"]["template"]["spec"]["containers"][0]["env"]}
    assert {name for name in SERVICES["worker"]["environment"] if name.startswith("AFFINERY_")} <= told


def test_base_images_of_the_dockerfile_are_pinned() -> None:
    bases = re.findall(r"^FROM (\S+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert bases
    for base in bases:
        assert re.search(r":\d+\.\d+\.\d+", base), f"{base} is not pinned"


def run_entrypoint(
    secrets: Path, environment: dict[str, str], *command: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(ENTRYPOINT), *command],
        env={"PATH": os.environ["PATH"], "AFFINERY_SECRETS": str(secrets), **environment},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_the_entrypoint_hands_secrets_over_as_they_are_and_hides_their_files(tmp_path: Path) -> None:
    secret = "a b'c\"$(date)`x`\\"
    (tmp_path / "password").write_text(secret)
    shown = [
        sys.executable,
        "-c",
        "import os; print(os.environ['PGPASSWORD']); print('PGPASSWORD_FILE' in os.environ)",
    ]
    result = run_entrypoint(tmp_path, {"PGPASSWORD_FILE": str(tmp_path / "password")}, *shown)
    assert result.stdout.splitlines() == [secret, "False"], result.stderr


def test_the_entrypoint_leaves_other_files_in_the_environment_alone(tmp_path: Path) -> None:
    shown = [sys.executable, "-c", "import os; print(os.environ['SSL_CERT_FILE'], 'SSL_CERT' in os.environ)"]
    result = run_entrypoint(tmp_path, {"SSL_CERT_FILE": "/etc/ssl/bundle"}, *shown)
    assert result.stdout.strip() == "/etc/ssl/bundle False", result.stderr


def test_the_entrypoint_says_which_secret_is_missing(tmp_path: Path) -> None:
    result = run_entrypoint(tmp_path, {"PGPASSWORD_FILE": str(tmp_path / "none")}, "true")
    assert result.returncode == 1
    assert "PGPASSWORD_FILE" in result.stderr


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "make-team-env.sh", tmp_path / "scripts")
    shutil.copy(ROOT / ".env.example", tmp_path)
    return tmp_path


def test_make_team_env_fills_every_secret_with_another_value_for_its_owner_only(checkout: Path) -> None:
    subprocess.run(
        [str(checkout / "scripts" / "make-team-env.sh")], check=True, capture_output=True, timeout=30
    )
    written = (checkout / ".env").read_text().splitlines()
    values = dict(line.split("=", 1) for line in written if line and not line.startswith("#"))
    fresh = [values[name] for name, default in dotenv_example().items() if default == ""]
    assert len(set(fresh)) == len(fresh)
    assert all(len(value) >= 32 for value in fresh)
    assert stat.S_IMODE((checkout / ".env").stat().st_mode) == 0o600


def test_make_team_env_never_overwrites_secrets_in_use(checkout: Path) -> None:
    (checkout / ".env").write_text("POSTGRES_PASSWORD=in use\n")
    subprocess.run(
        [str(checkout / "scripts" / "make-team-env.sh")], check=True, capture_output=True, timeout=30
    )
    assert (checkout / ".env").read_text() == "POSTGRES_PASSWORD=in use\n"
