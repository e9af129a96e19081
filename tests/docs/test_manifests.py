"""The manifests of docs/kubernetes.md, against what the published schemas say of their fields.

The table is made of facts read from the types of Kubeflow Trainer (pkg/apis/trainer/v1alpha1, 2.x),
of the MPI Operator (pkg/apis/kubeflow/v2beta1), of JobSet (v1alpha2) and of Kubernetes' core API:
the name of each field, the form of its value, and whether it must be there.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pages
import pytest
import yaml
from jobs import REPOSITORY

PAGE = REPOSITORY / "docs" / "kubernetes.md"
ANYTHING = object()


class Choice(tuple):
    """One of these words."""


class Each:
    """A list, or with `names` a map with these keys, of one kind of object; at least one."""

    def __init__(self, kind: Any, names: tuple[str, ...] = ()) -> None:
        self.kind, self.names = kind, names


# A name with * must be there.
LIMITS = {"cpu": str, "memory": str, "nvidia.com/gpu": int}
CONTAINER = {
    "name*": str, "image": str, "command": Each(str), "args": Each(str),
    "securityContext": {"runAsUser": int, "runAsGroup": int, "runAsNonRoot": bool},
    "env": Each({"name*": str, "value": str}),
    "resources": {"limits": LIMITS, "requests": LIMITS},
    "volumeMounts": Each({"name*": str, "mountPath*": str, "readOnly": bool, "subPath": str}),
}  # fmt: skip
POD = {
    "containers*": Each(CONTAINER),
    "volumes": Each(
        {
            "name*": str, "persistentVolumeClaim": {"claimName*": str, "readOnly": bool},
            "emptyDir": {"medium": Choice(("", "Memory")), "sizeLimit": str},
        }
    ),
    "restartPolicy": Choice(("Always", "OnFailure", "Never")),
    "terminationGracePeriodSeconds": int, "nodeSelector": ANYTHING,
    "securityContext": {"runAsUser": int, "runAsGroup": int, "fsGroup": int},
}  # fmt: skip
METADATA = {"name": str, "namespace": str, "labels": ANYTHING, "annotations": ANYTHING}
TEMPLATE = {"metadata": METADATA, "spec*": POD}
REPLICAS = {
    "replicas": int, "template*": TEMPLATE,
    "restartPolicy": Choice(("Always", "OnFailure", "Never", "ExitCode")),
}  # fmt: skip
KINDS = {
    ("trainer.kubeflow.org/v1alpha1", "TrainJob"): {
        "runtimeRef*": {
            "name*": str, "apiGroup": str,
            "kind": Choice(("TrainingRuntime", "ClusterTrainingRuntime")),
        },
        "trainer": {
            "image": str, "command": Each(str), "args": Each(str), "numNodes": int,
            "env": Each({"name*": str, "value": str}), "numProcPerNode": int,
            "resourcesPerNode": {"limits": LIMITS, "requests": LIMITS},
        },
        "initializer": ANYTHING, "suspend": bool, "managedBy": str, "activeDeadlineSeconds": int,
    },
    ("trainer.kubeflow.org/v1alpha1", "TrainingRuntime"): {
        "mlPolicy": {"numNodes": int, "torch": {}},
        "template*": {
            "metadata": METADATA,
            "spec": {
                "failurePolicy": {"maxRestarts": int}, "suspend": bool,
                "replicatedJobs": Each(
                    {
                        "name*": str, "replicas": int,
                        "template*": {
                            "metadata": METADATA,
                            "spec": {
                                "parallelism": int, "completions": int, "backoffLimit": int,
                                "template*": TEMPLATE,
                            },
                        },
                    }
                ),
            },
        },
    },
    ("kubeflow.org/v2beta1", "MPIJob"): {
        "slotsPerWorker": int, "sshAuthMountPath": str,
        "mpiImplementation": Choice(("OpenMPI", "Intel", "MPICH")),
        "runPolicy": {
            "cleanPodPolicy": Choice(("None", "Running", "All")), "backoffLimit": int,
            "ttlSecondsAfterFinished": int, "activeDeadlineSeconds": int, "suspend": bool,
        },
        "mpiReplicaSpecs*": Each(REPLICAS, ("Launcher", "Worker")),
    },
}  # fmt: skip


def flaws(value: Any, kind: Any, where: str) -> list[str]:
    """What is wrong with a value of this kind."""
    if kind is ANYTHING:
        return []
    if isinstance(kind, Choice):
        return [] if value in kind else [f"{where}: {value} is none of {', '.join(kind)}"]
    if isinstance(kind, Each):
        if kind.names:
            found = [f"{where}: has {sorted(value)}"] * (sorted(value) != sorted(kind.names))
            items = value.items()
        else:
            found, items = [f"{where}: is empty"] * (not value), enumerate(value)
        return found + [f for name, one in items for f in flaws(one, kind.kind, f"{where}.{name}")]
    if isinstance(kind, dict):
        if not isinstance(value, dict):
            return [f"{where}: {value} is no object"]
        known = {name.rstrip("*"): inner for name, inner in kind.items()}
        found = [f"{where}: there is no field {name}" for name in value if name not in known]
        missing = [n[:-1] for n in kind if n.endswith("*") and n[:-1] not in value]
        found += [f"{where}: {name} is missing" for name in missing]
        return found + [
            flaw
            for name, one in value.items()
            if name in known
            for flaw in flaws(one, known[name], f"{where}.{name}")
        ]
    return [] if type(value) is kind else [f"{where}: {value!r} is no {kind.__name__}"]


def manifest_flaws(text: str) -> list[str]:
    manifest = yaml.safe_load(text)
    kind = KINDS.get((manifest.get("apiVersion"), manifest.get("kind")))
    if kind is None:
        return [f"{manifest.get('apiVersion')} {manifest.get('kind')} is not known"]
    whole = {"apiVersion*": str, "kind*": str, "metadata*": METADATA, "spec*": kind}
    found = flaws(manifest, whole, manifest["kind"])
    name = str(manifest["metadata"].get("name"))
    return found + [f"{name} is no name"] * (not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name))


def manifests() -> dict[str, str]:
    texts = [block.text for block in pages.blocks(PAGE) if block.language == "yaml"]
    return {yaml.safe_load(text)["kind"]: text for text in texts}


def test_the_page_has_one_manifest_of_each_kind():
    assert sorted(manifests()) == sorted(kind for _, kind in KINDS)


@pytest.mark.parametrize("kind", ["TrainJob", "TrainingRuntime", "MPIJob"])
def test_a_manifest_is_as_its_schema_has_it(kind):
    assert manifest_flaws(manifests()[kind]) == []


@pytest.mark.parametrize(
    ("kind", "old", "new", "flaw"),
    [
        ("TrainJob", "numProcPerNode: 8", "numProcPerNode: auto", "'auto' is no int"),
        ("TrainJob", "runtimeRef:", "runtime:", "runtimeRef is missing"),
        ("TrainJob", "resourcesPerNode:", "resources:", "there is no field resources"),
        ("TrainingRuntime", "claimName:", "name:", "claimName is missing"),
        ("TrainingRuntime", "v1alpha1", "v2", "v2 TrainingRuntime is not known"),
        ("MPIJob", "    Worker:", "    Workers:", "has ['Launcher', 'Workers']"),
        ("MPIJob", "cleanPodPolicy: Running", "cleanPodPolicy: Ran", "Ran is none of None"),
        ("MPIJob", 'cpu: "64"', "cpu: 64", "64 is no str"),
        ("MPIJob", "name: resnet50", "name: ResNet-50", "ResNet-50 is no name"),
    ],
)
def test_a_manifest_that_a_cluster_would_refuse_is_found(kind, old, new, flaw):
    text = manifests()[kind]
    assert old in text
    assert flaw in "; ".join(manifest_flaws(text.replace(old, new, 1)))


def test_ranks_files_and_users_fit_the_image_and_each_other():
    job, runtime, mpi = (
        yaml.safe_load(manifests()[kind]) for kind in ("TrainJob", "TrainingRuntime", "MPIJob")
    )
    (group,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    labels = group["template"]["metadata"]["labels"]
    assert labels == {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}
    assert group["template"]["spec"]["template"]["spec"]["containers"][0]["name"] == "node"
    assert job["spec"]["runtimeRef"]["name"] == runtime["metadata"]["name"]
    trainer = job["spec"]["trainer"]
    assert trainer["resourcesPerNode"]["limits"]["nvidia.com/gpu"] == trainer["numProcPerNode"]

    spec = mpi["spec"]
    launcher, worker = (spec["mpiReplicaSpecs"][name] for name in ("Launcher", "Worker"))
    (starts,), (serves,) = (one["template"]["spec"]["containers"] for one in (launcher, worker))
    command = starts["command"]
    ranks = int(command[command.index("-np") + 1])
    assert ranks == worker["replicas"] * spec["slotsPerWorker"]
    assert serves["resources"]["limits"]["nvidia.com/gpu"] == spec["slotsPerWorker"]
    install = Path(REPOSITORY, "containers", "install.sh").read_text()
    assert f"keys={spec['sshAuthMountPath']}\n" in install
    assert serves["command"][-1] in install
    for options in (trainer["args"], starts["args"][3:]):
        from pipeline.config.reading import load_config

        assert str(load_config(options, "", "").run.path) == "/workspace/runs/resnet50"
