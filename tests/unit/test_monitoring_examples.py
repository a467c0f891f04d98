"""What examples/prometheus and examples/kubernetes say is what the tools of both take, and what nexusd has."""

import re
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from nexusd.config import Options, read_config
from nexusd.system.families import FAMILIES
from tests.promtool import promtool

EXAMPLES = Path(__file__).parents[2] / "examples"
PROMETHEUS = EXAMPLES / "prometheus"
DOCUMENTS = list(yaml.safe_load_all((EXAMPLES / "kubernetes" / "nexus.yaml").read_text(encoding="utf-8")))
BY_KIND = {document["kind"]: document for document in DOCUMENTS}


def loaded(name: str) -> Any:
    return yaml.safe_load((PROMETHEUS / name).read_text(encoding="utf-8"))


def pod() -> dict[str, Any]:
    spec: dict[str, Any] = BY_KIND["Deployment"]["spec"]["template"]["spec"]
    return spec


def container() -> dict[str, Any]:
    (found,) = pod()["containers"]
    assert isinstance(found, dict)
    return found


# Prometheus


def test_promtool_takes_the_configuration_and_its_rules() -> None:
    assert "SUCCESS" in promtool("check", "config", "prometheus.yml", cwd=PROMETHEUS)


def test_the_stories_about_the_alerts_come_true() -> None:
    assert "SUCCESS" in promtool("test", "rules", "alerts_test.yml", cwd=PROMETHEUS)


def test_the_scrape_configuration_is_the_one_that_aeon_is_told() -> None:
    assert loaded("prometheus.yml")["scrape_configs"] == [
        {
            "job_name": "nexus",
            "static_configs": [{"targets": ["nexus:9090"]}],
            "metrics_path": "/metrics",
        }
    ]


def test_every_alert_has_a_story_in_which_it_rings_and_one_in_which_it_does_not() -> None:
    alerts = {rule["alert"] for group in loaded("alerts.yml")["groups"] for rule in group["rules"]}
    cases = [case for test in loaded("alerts_test.yml")["tests"] for case in test["alert_rule_test"]]
    assert {case["alertname"] for case in cases if case["exp_alerts"]} == alerts
    assert {case["alertname"] for case in cases if not case["exp_alerts"]} == alerts


def test_alerts_speak_of_metrics_that_there_are() -> None:
    text = (PROMETHEUS / "alerts.yml").read_text(encoding="utf-8")
    named = {re.sub(r"_bucket$", "", name) for name in re.findall(r"\bnexus_[a-z_]+", text)}
    assert named and named <= set(FAMILIES)


# Kubernetes


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document["kind"])
def test_kubernetes_takes_every_document(document: dict[str, Any]) -> None:
    kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)


def test_a_mistyped_key_would_be_found() -> None:
    wrong = {**BY_KIND["Service"], "spce": {}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, kubernetes_validate.latest_version(), strict=True)


@pytest.mark.parametrize(("probe", "delay_s", "period_s"), [("liveness", 10, 30), ("readiness", 5, 10)])
def test_the_probes_are_those_that_aeon_is_told(probe: str, delay_s: int, period_s: int) -> None:
    found = container()[f"{probe}Probe"]
    assert found["exec"]["command"] == ["python", "/aeon/interfaces/python/nexus/live.py", probe]
    assert (found["initialDelaySeconds"], found["periodSeconds"]) == (delay_s, period_s)


def test_nexusd_takes_the_configuration_and_everybody_means_the_same_socket(tmp_path: Path) -> None:
    file = tmp_path / "nexusd.toml"
    file.write_text(BY_KIND["ConfigMap"]["data"]["nexusd.toml"])
    config = read_config(Options(config=str(file)), {}, 10001)
    environment = {entry["name"]: entry["value"] for entry in container()["env"]}
    assert environment["NEXUS_SOCKET"] == config.socket
    assert config.metrics.address == ("0.0.0.0", container()["ports"][0]["containerPort"])


def test_what_nexusd_writes_to_can_be_written_to(tmp_path: Path) -> None:
    file = tmp_path / "nexusd.toml"
    file.write_text(BY_KIND["ConfigMap"]["data"]["nexusd.toml"])
    config = read_config(Options(config=str(file)), {}, 10001)
    writable = {mount["mountPath"] for mount in container()["volumeMounts"] if not mount.get("readOnly")}
    assert {config.runtime, config.state, config.logs, str(Path(config.socket).parent)} <= writable
    volumes = {volume["name"] for volume in pod()["volumes"]}
    assert {mount["name"] for mount in container()["volumeMounts"]} == volumes


def test_prometheus_reaches_the_service_under_the_name_that_it_asks_for() -> None:
    service = BY_KIND["Service"]
    (port,) = service["spec"]["ports"]
    (target,) = loaded("prometheus.yml")["scrape_configs"][0]["static_configs"][0]["targets"]
    assert f"{service['metadata']['name']}:{port['port']}" == target
    labels = BY_KIND["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= labels.items()
    assert port["targetPort"] in {one["name"] for one in container()["ports"]}


def test_nexusd_is_the_first_process_of_the_container() -> None:
    text = (EXAMPLES / "kubernetes" / "Dockerfile").read_text(encoding="utf-8")
    (entry,) = re.findall(r"^ENTRYPOINT (.+)$", text, flags=re.MULTILINE)
    assert yaml.safe_load(entry)[0] == "nexusd"
    assert "command" not in container() and "args" not in container()
