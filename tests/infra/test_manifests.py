"""infra/ without a cluster: known fields, valid commands, images, sizes, metrics that agree."""

import contextlib
import io
import json
import re
import shlex
import tomllib
from pathlib import Path

import jsonschema
import pytest
import yaml
from pydantic import ValidationError
from ray._common.utils import import_attr
from ray.serve.schema import ServeDeploySchema

from rapport.actors import telemetry
from rapport.pipeline.plan import Piece, place
from rapport.pipeline.run import RECIPES, main
from rapport.pipeline.serve.deployment import SECRET
from rapport.pipeline.serve.settings import TOKEN, ServeSection

ROOT = Path(__file__).parents[2]
INFRA = ROOT / "infra"
SCHEMAS = yaml.safe_load((Path(__file__).parent / "schemas.yaml").read_text())
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
IMAGE = f"rapport-rlhf:{PROJECT['version']}"
JOBS = ("dpo", "gdpo", "tune")
CLUSTERS = (*JOBS, "serve")
FILES = {f"kuberay/{job}.yaml": "rayjob" for job in JOBS} | {
    "kuberay/serve.yaml": "rayservice",
    "kuberay/storage.yaml": "storage",
    "kuberay/monitor.yaml": "monitor",
    "compose.yaml": "compose",
    "prometheus.yaml": "prometheus",
    "grafana/dashboard.json": "dashboard",
    "grafana/datasource.yaml": "datasource",
    "grafana/provider.yaml": "provider",
}
TEXTS = sorted(
    path
    for path in INFRA.rglob("*")
    if path.is_file() and path.suffix != ".lock" and path.parent.name != "__pycache__"
)


def read(name: str) -> dict:
    return yaml.safe_load((INFRA / name).read_text())  # JSON is YAML


def check(manifest: dict, schema: str) -> None:
    jsonschema.Draft202012Validator(SCHEMAS[schema] | {"$defs": SCHEMAS["$defs"]}).validate(
        manifest
    )


@pytest.mark.parametrize(("name", "schema"), FILES.items())
def test_every_field_is_one_that_the_format_knows(name, schema):
    check(read(name), schema)


def test_no_file_goes_unchecked():
    by_ray = {"cluster.yaml", "serve.yaml"}  # below
    by_npm = {"web/package.json", "web/package-lock.json"}
    assert {
        str(path.relative_to(INFRA)) for path in TEXTS if path.suffix in (".yaml", ".json")
    } == {*FILES, *by_ray, *by_npm}


def test_a_slip_of_the_pen_fails():
    job = read("kuberay/dpo.yaml")
    job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["maxReplica"] = 3
    with pytest.raises(jsonschema.ValidationError, match="maxReplica"):
        check(job, "rayjob")


def test_ray_takes_the_cluster_file():
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(read("cluster.yaml")))


# The live server


def served(name: str) -> str:
    """What Ray Serve is given."""
    if name == "serve.yaml":
        return (INFRA / name).read_text()
    return read(name)["spec"]["serveConfigV2"]


SERVED = ["serve.yaml", "kuberay/serve.yaml"]


@pytest.fixture
def token(monkeypatch):
    monkeypatch.setenv(TOKEN, "of the test")


def configs_of_serve() -> dict[str, dict]:
    """Both files, and the one as it is with autoscaling."""
    text = served("kuberay/serve.yaml")
    scaled = re.sub(r"# (num_replicas: auto|autoscaling_config:| +\{min_replicas)", r"\1", text)
    assert scaled.count("#") == text.count("#") - 3
    return {name: yaml.safe_load(served(name)) for name in SERVED} | {
        "with autoscaling": yaml.safe_load(scaled)
    }


@pytest.mark.parametrize("name", configs_of_serve())
def test_ray_serve_knows_every_key(name):
    """It drops others without a word."""
    config = configs_of_serve()[name]
    known = ServeDeploySchema.model_validate(config).model_dump(mode="json", exclude_unset=True)
    assert known == config


@pytest.mark.parametrize("name", configs_of_serve())
def test_the_application_of_a_file_of_serve_is_built(name, token):
    config = configs_of_serve()[name]
    [application] = config["applications"]
    build = import_attr(application["import_path"])
    deployment = build(application["args"])._bound_deployment
    section = ServeSection(**application["args"]["serve"])
    assert deployment.num_replicas == section.replicas
    assert deployment.ray_actor_options["num_cpus"] == section.cpus
    [changed] = application["deployments"]
    assert changed["name"] == deployment.name
    options = {key: value for key, value in changed.items() if key != "name"}
    assert deployment.options(**options).user_config == changed["user_config"]
    assert changed["user_config"].keys() == deployment.user_config.keys()
    assert ServeSection(**changed["user_config"]).policies, "what `reconfigure` is given"


def test_autoscaling_leaves_room_in_a_replica(token):
    [application] = configs_of_serve()["with autoscaling"]["applications"]
    [changed] = application["deployments"]
    target = changed["autoscaling_config"]["target_ongoing_requests"]
    assert target == pytest.approx(0.7 * application["args"]["serve"]["sessions"], abs=0.5)


@pytest.mark.parametrize("name", SERVED)
def test_a_server_that_others_reach_is_not_built_without_a_token(name, monkeypatch):
    monkeypatch.delenv(TOKEN, raising=False)
    config = yaml.safe_load(served(name))
    [application] = config["applications"]
    section = application["args"]["serve"]
    listens = config["http_options"]
    assert (section["host"], section["port"]) == (listens["host"], listens["port"])
    with pytest.raises(ValidationError, match=TOKEN):
        import_attr(application["import_path"])(application["args"])


def test_both_files_of_serve_differ_in_size_only():
    one, other = (yaml.safe_load(served(name)) for name in SERVED)
    for config in (one, other):
        del config["applications"][0]["args"]["serve"]["cpus"]
    assert one == other


def test_the_pods_of_serve_have_its_secrets_and_room_for_its_replicas():
    text = (INFRA / "kuberay" / "serve.yaml").read_text()
    keys = set(re.findall(r"--from-literal=(\w+)=", text))
    [secret] = re.findall(r"kubectl create secret generic (\S+)", text)
    for pod in pods("serve").values():
        variables = {v["name"]: v for v in pod["containers"][0]["env"]}
        references = [variables[name]["valueFrom"]["secretKeyRef"] for name in (TOKEN, SECRET)]
        assert {reference["name"] for reference in references} == {secret}
        assert {reference["key"] for reference in references} == keys
    section = configs_of_serve()["kuberay/serve.yaml"]["applications"][0]["args"]["serve"]
    [group] = cluster_of("serve")["workerGroupSpecs"]
    assert section["replicas"] == group["replicas"] == group["minReplicas"]
    replica = Piece("replica", section["cpus"], section["gpus"])
    [node, *_] = nodes_of_job("serve")["listeners"]
    assert_covered([(replica, None)], {"listeners": [node]})


# Commands


def commands(text: str) -> list[str]:
    """Every `python -m pipeline.run ...` of a file, to the end of its line or folded block."""
    folded = re.sub(
        r"(?<=>-)\n((?: {4,}.*\n)+)", lambda block: " " + " ".join(block[1].split()) + "\n", text
    )
    return re.findall(r"python -m pipeline\.run [^\n`|]+", folded)


def config_of(command: str) -> dict:
    """What our command line makes of it; `/app` is the repository in the image."""
    words = shlex.split(command.replace("/app/", f"{ROOT}/"), comments=True)[3:]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert main([*words, "--print-config"]) == 0
    return yaml.safe_load(printed.getvalue())


WRITTEN = {
    f"{path.name}:{i}": command
    for path in TEXTS
    if path.suffix not in (".json", ".py")
    for i, command in enumerate(commands(path.read_text()))
}


@pytest.mark.parametrize("command", WRITTEN.values(), ids=WRITTEN)
def test_every_command_names_a_recipe_and_valid_keys(command):
    if command.split()[3] == "tune" and "tune" not in RECIPES:
        pytest.skip("the recipe `tune` is not in this tree")
    config_of(command)


def test_the_walk_finds_commands_in_comments_and_folded_blocks():
    text = (
        "# x: python -m pipeline.run sft seed=1\n"
        "a: >-\n    python -m pipeline.run\n    dpo seed=2\nb: 1\n"
    )
    found = commands(text)
    assert found == ["python -m pipeline.run sft seed=1", "python -m pipeline.run dpo seed=2"]
    assert {"dpo.yaml:0", "gdpo.yaml:0", "tune.yaml:0", "compose.yaml:0", "cluster.yaml:0"} <= set(
        WRITTEN
    )


# Images


def pins_of(lock: str) -> list[str]:
    """Its requirements, without hashes and comments."""
    lines = (INFRA / "requirements" / lock).read_text().splitlines()
    return [line for line in lines if line and line[0] not in "# "]


def test_there_is_one_image_of_one_version():
    for path in TEXTS:
        assert set(re.findall(r"rapport-rlhf[:\w.-]*", path.read_text())) <= {
            f"{IMAGE}-cpu",
            f"{IMAGE}-cuda",
        }, path
    services = read("compose.yaml")["services"].values()
    assert {s["image"] for s in services if s["image"].startswith("rapport")} == {f"{IMAGE}-cpu"}
    for name in JOBS:
        assert {pod["containers"][0]["image"] for pod in pods(name).values()} == {f"{IMAGE}-cuda"}
    assert {pod["containers"][0]["image"] for pod in pods("serve").values()} == {f"{IMAGE}-cpu"}
    assert read("cluster.yaml")["docker"]["image"] == f"{IMAGE}-cuda"


def test_the_ray_of_kuberay_is_that_of_the_image():
    [ray] = [line for line in pins_of("cuda.lock") if line.startswith("ray==")]
    for name in CLUSTERS:
        assert cluster_of(name)["rayVersion"] == ray.split("==")[1].split()[0]


def test_the_image_is_pinned_and_runs_as_nobody_in_particular():
    lines = (INFRA / "Dockerfile").read_text().splitlines()
    bases = [line.split()[1] for line in lines if line.startswith("FROM")]
    assert len(set(bases)) == 1 and re.fullmatch(r"python:3\.11\.\d+-slim-bookworm", bases[0])
    assert "USER 1000:1000" in lines  # by number: Kubernetes' runAsNonRoot cannot look names up
    locks = re.findall(r"infra/requirements/(\S+\.lock)", "\n".join(lines))
    names = {lock.replace("${EXTRA}", extra) for lock in locks for extra in ("cpu", "cuda")}
    assert names == {"cpu.lock", "cuda.lock", "server.lock", "video.lock"}
    assert {"libegl1", "libgles2"} <= set("\n".join(lines).split()), "which MediaPipe links"
    for name in names:
        pins = pins_of(name)
        assert pins and all("==" in pin or " @ " in pin for pin in pins), name


def test_what_is_copied_into_the_image_is_there():
    kept = [
        line[1:]
        for line in (INFRA / "Dockerfile.dockerignore").read_text().splitlines()
        if line.startswith("!")
    ]
    assert all((ROOT / name).exists() for name in kept)
    assert {
        "actors",
        "pipeline",
        "policies",
        "rewards",
        "configs",
        "infra/requirements",
        "pyproject.toml",
        PROJECT["readme"],
    } <= set(kept)


# Sizes


def cluster_of(name: str) -> dict:
    """The Ray cluster of a RayJob or of the RayService."""
    spec = read(f"kuberay/{name}.yaml")["spec"]
    return spec["rayClusterConfig" if name == "serve" else "rayClusterSpec"]


def pods(name: str) -> dict[str, dict]:
    """Group -> pod."""
    cluster = cluster_of(name)
    groups = {"head": cluster["headGroupSpec"]} | {
        group["groupName"]: group for group in cluster["workerGroupSpecs"]
    }
    return {name: group["template"]["spec"] for name, group in groups.items()}


def nodes_of_job(job: str) -> dict[str, list[dict[str, float]]]:
    """Group -> what Ray sees of each of its nodes when all have come."""
    groups = {}
    for group in cluster_of(job)["workerGroupSpecs"]:
        limits = pods(job)[group["groupName"]]["containers"][0]["resources"]["limits"]
        node = {"CPU": float(limits["cpu"]), "GPU": float(limits.get("nvidia.com/gpu", 0))}
        marks = {mark: float(amount) for mark, amount in group.get("resources", {}).items()}
        groups[group["groupName"]] = [node | marks] * group["maxReplicas"]
    return groups


def nodes_of_cluster_file() -> dict[str, list[dict[str, float]]]:
    return {
        name: [{"CPU": 0.0, "GPU": 0.0} | kind["resources"]] * kind["max_workers"]
        for name, kind in read("cluster.yaml")["available_node_types"].items()
        if name != "head"
    }


def requested(command: str) -> list[tuple[Piece, str | None]]:
    """Every process of a command at its height, and the mark of its nodes."""
    from rapport.pipeline.steps.checks import demand

    words = command.split()
    recipe = RECIPES[words[3]]
    configs = recipe.configs_of(words[4] if recipe.subjects else None)
    config = next(iter(configs.values())).model_validate(config_of(command))
    sections = {"engine": "rollout", "learner": "learner", "renderer": "render", "rater": "raters"}
    height = max(demand(config).values(), key=len)
    return [(piece, getattr(config, sections[piece[0]]).nodes) for piece in height]


def assert_covered(
    pieces: list[tuple[Piece, str | None]], groups: dict[str, list[dict[str, float]]]
) -> None:
    for mark in {mark for _, mark in pieces}:
        marked = [
            node for nodes in groups.values() for node in nodes if mark is None or node.get(mark)
        ]
        _, left = place(
            [piece for piece, m in pieces if m == mark],
            [(node["CPU"], node["GPU"]) for node in marked],
        )
        assert not left, f"{mark}: no room for {left}"


@pytest.mark.parametrize("job", ["dpo", "gdpo"])
def test_the_groups_of_a_job_hold_what_preflight_says_it_asks_for(job):
    pieces = requested(read(f"kuberay/{job}.yaml")["spec"]["entrypoint"])
    assert None not in {mark for _, mark in pieces}, "every process is kept on its group"
    assert_covered(pieces, nodes_of_job(job))


def test_a_sweep_has_room_for_the_learners_of_every_trial():
    """Trials share a fleet, renderers and raters; each has learners of its own."""
    entrypoint = read("kuberay/tune.yaml")["spec"]["entrypoint"]
    trials = int(re.search(r" tune\.concurrent=(\d+)", entrypoint)[1])
    one = re.sub(r" tune\.\S+", "", entrypoint.replace("tune dpo", "dpo"))
    learners = [piece for piece in requested(one) if piece[0][0] == "learner"]
    assert trials > 1
    assert_covered(requested(one) + learners * (trials - 1), nodes_of_job("tune"))


def test_the_cluster_file_holds_the_job_in_its_comment():
    command = WRITTEN["cluster.yaml:0"]
    assert_covered(requested(command), nodes_of_cluster_file())
    assert (
        sum(len(nodes) for nodes in nodes_of_cluster_file().values())
        <= read("cluster.yaml")["max_workers"]
    )


def test_one_worker_of_compose_holds_the_default_job():
    worker = read("compose.yaml")["services"]["worker"]
    cpus = float(re.search(r"--num-cpus=(\d+)", worker["command"])[1])
    assert_covered(requested(WRITTEN["compose.yaml:0"]), {"worker": [{"CPU": cpus, "GPU": 0.0}]})


# What refers to what


def test_volumes_of_every_pod_are_mounted_and_claimed():
    claim = read("kuberay/storage.yaml")["metadata"]["name"]
    for name in CLUSTERS:
        for pod in pods(name).values():
            volumes = {volume["name"]: volume for volume in pod["volumes"]}
            assert {mount["name"] for mount in pod["containers"][0]["volumeMounts"]} == set(volumes)
            assert volumes["shared"]["persistentVolumeClaim"]["claimName"] == claim


def test_compose_refers_to_files_services_volumes_and_secrets_that_exist():
    text, compose = (INFRA / "compose.yaml").read_text(), read("compose.yaml")
    for service in compose["services"].values():
        assert set(service.get("depends_on", {})) <= set(compose["services"])
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert (
                (INFRA / source).is_file()
                if source.startswith(".")
                else source in compose["volumes"]
            ), volume
        if "build" in service:
            assert (INFRA / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
    written = set(re.findall(r"([A-Z_]+)=%s", text))
    assert set(re.findall(r"\$\{(\w+):\?", text)) == written, (
        "the first lines tell how to write infra/.env"
    )
    assert "infra/.env" in (ROOT / ".gitignore").read_text().splitlines()


def test_prometheus_asks_every_ray_service_at_its_port():
    services = read("compose.yaml")["services"]
    [found] = [
        c
        for job in read("prometheus.yaml")["scrape_configs"]
        for c in job.get("dns_sd_configs", [])
    ]
    ray = {
        name
        for name, service in services.items()
        if service.get("command", "").startswith("ray start")
    }
    assert set(found["names"]) == ray
    assert all(
        f"--metrics-export-port={found['port']}" in services[name]["command"] for name in ray
    )
    [source] = read("grafana/datasource.yaml")["datasources"]
    assert source["url"] == "http://prometheus:9090" and "prometheus" in services
    [provider] = read("grafana/provider.yaml")["providers"]
    assert any(
        f":{provider['options']['path']}/" in volume for volume in services["grafana"]["volumes"]
    )


def test_the_dashboard_shows_every_metric_and_no_other():
    all_panels = json.loads((INFRA / "grafana" / "dashboard.json").read_text())["panels"]
    panels = [panel for panel in all_panels if panel["type"] != "row"]
    shown = {
        name
        for panel in panels
        for target in panel["targets"]
        for name in re.findall(r"ray_rapport_\w+", target["expr"])
    }
    exported = {
        metric.exported + ("_bucket" if metric.kind == "histogram" else "")
        for metric in telemetry.METRICS
    }
    assert shown == exported
    tags = {
        tag
        for panel in panels
        for target in panel["targets"]
        for group in re.findall(r"by \(([^)]*)\)", target["expr"])
        for tag in group.split(", ")
    } - {"le"}
    assert tags <= {tag for metric in telemetry.METRICS for tag in metric.tags}
    places = [(p["gridPos"]["x"], p["gridPos"]["y"]) for p in all_panels]
    assert len(set(places)) == len(places) == len({p["id"] for p in all_panels})


def test_the_readme_explains_every_metric():
    explained = re.findall(r"^\| `(ray_rapport_\w+)` \|", (INFRA / "README.md").read_text(), re.M)
    assert sorted(explained) == sorted(metric.exported for metric in telemetry.METRICS)
