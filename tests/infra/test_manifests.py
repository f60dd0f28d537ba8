"""Manifests: what the operator, Kubernetes and Ray's autoscaler make of them, and what must hold of them.

Schemas: KubeRay's fields (tests/infra/kuberay.py), Ray's own reader of a RayCluster and its JSON schema of a
cluster of machines (in the ray package), and, where kubectl is installed, Kubernetes' types of pods.
"""

import copy
import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pydantic
import pytest
import yaml

from cluster.config import load
from pretrain.config import RunConfig
from tests.infra import kuberay

ROOT = Path(__file__).resolve().parents[2]
INFRA = ROOT / "infra"


def documents(name: str) -> list[Any]:
    return list(yaml.safe_load_all((INFRA / name).read_text()))


def cluster() -> dict[str, Any]:
    return dict(documents("kuberay/raycluster.yaml")[0])


def job() -> dict[str, Any]:
    return dict(documents("kuberay/rayjob.yaml")[0])


def pods() -> dict[str, dict[str, Any]]:
    """{name: pod template} of all that we run."""
    spec = cluster()["spec"]
    found = {"head": spec["headGroupSpec"]["template"]}
    found |= {group["groupName"]: group["template"] for group in spec["workerGroupSpecs"]}
    return found | {"submit": job()["spec"]["submitterPodTemplate"]}


def leaves(value: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, f"{at}.{key}")
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from leaves(inner, f"{at}.{i}")
    else:
        yield at, value


# ---------------------------------------------------------------- schemas


def test_the_operator_knows_every_field() -> None:
    kuberay.RayCluster.model_validate(cluster())
    kuberay.RayJob.model_validate(job())


@pytest.mark.parametrize("path", ["spec.autoscalerOption", "spec.headGroupSpec.raystartParams"])
def test_a_field_that_the_operator_does_not_know_is_found(path: str) -> None:
    wrong = copy.deepcopy(cluster())
    *above, last = path.split(".")
    table = wrong
    for key in above:
        table = table[key]
    table[last] = {}
    with pytest.raises(pydantic.ValidationError, match=last):
        kuberay.RayCluster.model_validate(wrong)


def test_rays_autoscaler_reads_bounds_resources_and_labels_as_meant() -> None:
    from ray.autoscaler._private.kuberay import autoscaling_config

    read: Any = autoscaling_config._derive_autoscaling_config_from_ray_cr
    found = read(cluster())  # checks itself against Ray's JSON schema
    types = found["available_node_types"]
    assert types["headgroup"]["resources"]["CPU"] == 0
    assert (types["train"]["min_workers"], types["train"]["max_workers"]) == (2, 6)
    assert types["train"]["resources"] | {"memory": 0} == {"CPU": 12, "GPU": 1, "memory": 0}
    assert types["train"]["labels"] == {"plethora/role": "train", "ray.io/market-type": "spot"}
    assert types["train"]["idle_timeout_s"] == 600
    assert "GPU" not in types["transform"]["resources"]
    assert found["upscaling_speed"] == 1 and found["idle_timeout_minutes"] == 5


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="no kubectl here, whose types are the schema")
@pytest.mark.parametrize("name", ["head", "transform", "train", "submit"])
def test_kubernetes_keeps_every_field_of_a_pod(name: str, tmp_path: Path) -> None:
    template = pods()[name]
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "x", **template["metadata"]},
        "spec": template["spec"],
    }
    (tmp_path / "pod.json").write_text(json.dumps(pod))
    container = template["spec"]["containers"][0]["name"]
    # decodes into Kubernetes' own types, which drop what they do not know, and needs no server
    command = [
        "kubectl",
        "set",
        "image",
        "--local",
        "-f",
        str(tmp_path / "pod.json"),
        f"{container}=other",
        "-o",
        "json",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    kept = dict(leaves(json.loads(done.stdout)["spec"]))
    lost = {at for at, value in leaves(template["spec"]) if at not in kept and value is not None}
    assert not lost


def test_rays_launcher_takes_the_cluster_of_machines() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    (config,) = documents("ray-up.yaml")
    filled = prepare_config(copy.deepcopy(config))
    validate_config(filled)
    with pytest.raises(Exception, match="max_worker"):
        validate_config(filled | {"max_worker": 3})
    bounds = sum(kind.get("max_workers", 0) for kind in config["available_node_types"].values())
    assert config["max_workers"] == bounds


# ---------------------------------------------------------------- what must hold


def test_the_bounds_of_autoscaling_are_the_elastic_range_of_the_run() -> None:
    words = job()["spec"]["entrypoint"].split()
    assert words == shlex.split(job()["spec"]["entrypoint"])  # the operator loses quotes
    assert words[:3] == ["python", "-m", "pretrain"] and "--resume" in words
    run_file = ROOT / Path(words[3]).relative_to("/app")
    sets = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
    run = load(run_file, RunConfig, sets)  # its batch divides for every number of workers
    train = next(g for g in cluster()["spec"]["workerGroupSpecs"] if g["groupName"] == "train")
    gpus = int(train["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"])
    assert run.workers == (train["minReplicas"] * gpus, train["maxReplicas"] * gpus)
    assert run.resources.gpu == 1
    machines = documents("ray-up.yaml")[0]["available_node_types"]["train"]
    assert (machines["min_workers"], machines["max_workers"]) == run.workers


def test_the_head_never_lies_on_a_spot_machine_and_workers_may() -> None:
    head, spec = pods()["head"], cluster()["spec"]
    assert head["spec"]["nodeSelector"] == {"plethora/capacity": "on-demand"}
    assert "tolerations" not in head["spec"]
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for group in spec["workerGroupSpecs"]:
        assert group["labels"]["ray.io/market-type"] == "spot"
        assert group["template"]["spec"]["nodeSelector"] == {"plethora/capacity": "spot"}
        assert {
            "key": "plethora/capacity",
            "operator": "Equal",
            "value": "spot",
            "effect": "NoSchedule",
        } in group["template"]["spec"]["tolerations"]
    machines = documents("ray-up.yaml")[0]
    kinds = machines["available_node_types"]
    assert "InstanceMarketOptions" not in kinds[machines["head_node_type"]]["node_config"]
    assert all(
        kinds[name]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
        for name in ("transform", "train")
    )


def test_a_pod_that_ends_has_time_to_save_a_checkpoint() -> None:
    for name in ("transform", "train"):
        spec = pods()[name]["spec"]
        (container,) = spec["containers"]
        (hook,) = container["lifecycle"]["preStop"]["exec"]["command"]
        assert (ROOT / Path(hook).relative_to("/app")).stat().st_mode & 0o111
        drain = next(
            e["value"] for e in container["env"] if e["name"] == "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"
        )
        assert int(drain) < spec["terminationGracePeriodSeconds"]


@pytest.mark.parametrize("name", ["head", "transform", "train", "submit"])
def test_pods_have_limits_run_as_nobody_special_and_gain_nothing(name: str) -> None:
    spec = pods()[name]["spec"]
    assert spec["securityContext"]["runAsNonRoot"] and spec["securityContext"]["runAsUser"] >= 1000
    assert not any(spec.get(key) for key in ("hostNetwork", "hostPID", "hostIPC"))
    assert all("hostPath" not in volume for volume in spec.get("volumes", []))
    assert spec["automountServiceAccountToken"] is (name == "head")
    for container in spec["containers"]:
        limits, requests = container["resources"]["limits"], container["resources"]["requests"]
        assert {"cpu", "memory"} <= limits.keys() and requests.keys() <= limits.keys()
        locked = container["securityContext"]
        assert locked["allowPrivilegeEscalation"] is False and locked["capabilities"] == {"drop": ["ALL"]}
        assert not locked.get("privileged")
        if name != "submit":
            assert {"livenessProbe", "readinessProbe", "startupProbe"} <= container.keys()


def test_shared_memory_fits_into_the_memory_of_its_container() -> None:
    for name in ("head", "transform", "train"):
        spec = pods()[name]["spec"]
        shm = next(v["emptyDir"]["sizeLimit"] for v in spec["volumes"] if v["name"] == "shm")
        assert int(shm.removesuffix("Gi")) * 2 <= int(
            spec["containers"][0]["resources"]["limits"]["memory"].removesuffix("Gi")
        )


def test_tokens_are_on_everywhere() -> None:
    assert cluster()["spec"]["authOptions"] == {"mode": "token"}
    env = {e["name"]: e for e in pods()["submit"]["spec"]["containers"][0]["env"]}
    assert env["RAY_AUTH_MODE"]["value"] == "token"
    assert env["RAY_AUTH_TOKEN"]["valueFrom"]["secretKeyRef"] == {
        "name": cluster()["metadata"]["name"],
        "key": "auth_token",
    }
    machines = documents("ray-up.yaml")[0]
    starts = [
        c for key in ("head", "worker") for c in machines[f"{key}_start_ray_commands"] if "ray start" in c
    ]
    assert len(starts) == 2 and all("RAY_AUTH_MODE=token" in command for command in starts)
    assert any(place.endswith("/.ray/auth_token") for place in machines["file_mounts"])


def test_nothing_but_the_cluster_its_submitters_and_prometheus_gets_in() -> None:
    deny, ray = documents("kuberay/network-policy.yaml")
    assert deny["spec"] == {"podSelector": {}, "policyTypes": ["Ingress"]}
    inside = {"podSelector": {"matchLabels": {"ray.io/cluster": cluster()["metadata"]["name"]}}}
    assert ray["spec"]["podSelector"] == inside["podSelector"]
    for rule in ray["spec"]["ingress"]:
        assert rule["from"] and {} not in rule["from"]
        ports = {port["port"] for port in rule.get("ports", [])}
        assert rule["from"] == [inside] if not ports else ports <= {8265, 8080}
    submit = {"podSelector": {"matchLabels": {"plethora/part": "submit"}}}
    assert submit["podSelector"]["matchLabels"].items() <= pods()["submit"]["metadata"]["labels"].items()
    assert any(submit in rule["from"] for rule in ray["spec"]["ingress"])
    machines = documents("ray-up.yaml")[0]
    opened = machines["provider"]["security_group"]["IpPermissions"]
    assert [rule["FromPort"] for rule in opened] == [22]
    assert all(ranges["CidrIp"] != "0.0.0.0/0" for rule in opened for ranges in rule["IpRanges"])
    assert "--dashboard-host=127.0.0.1" in " ".join(machines["head_start_ray_commands"])


def test_no_file_of_infra_holds_a_secret() -> None:
    telling = re.compile(
        r"(?i)(?:secret|token|password|access_key|subject_key)[\"']?\s*[:=]\s*[\"']?([A-Za-z0-9+/_-]{12,})"
    )
    for path in [p for p in INFRA.rglob("*") if p.is_file()]:
        text = path.read_text()
        assert not [value for value in telling.findall(text) if re.search(r"\d", value)], path
        assert not re.search(r"\b(AKIA|ASIA)[0-9A-Z]{16}\b|PRIVATE KEY", text), path


def test_images_and_rays_version_are_one() -> None:
    pinned = re.search(r"^ray(?:\[[^\]]*\])?==(\S+)", (ROOT / "requirements.lock").read_text(), re.M)
    assert pinned and cluster()["spec"]["rayVersion"] == pinned[1]
    images = {c["image"] for pod in pods().values() for c in pod["spec"]["containers"]}
    assert images == {documents("ray-up.yaml")[0]["docker"]["image"]} and not any(
        i.endswith(":latest") for i in images
    )
