"""launch/gke_jobset.sh and launch/xpk.sh: their manifests and their calls."""

import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.launch.cloud import TRICKY, Cloud, job_of
from tests.launch.jobset_schema import JOBSET as JOBSET_SCHEMA
from tests.launch.kubernetes import differences, expand, violations

JOBSET = ("--gke-accelerator=tpu-v5p-slice", "--topology=4x4x4", "--image=i", "--name=run")
SHARED = "--shared=10.0.0.2:/vol"
XPK = (
    *("--project=p", "--zone=us-east5-a", "--gke-cluster=c", "--tpu-type=v5p-128"),
    *("--image=gcr.io/p/rrope:1", "--xpk-storage=s", "--name=run"),
)


def manifest(cloud: Cloud, *words: str) -> dict[str, Any]:
    run = cloud.run("gke_jobset.sh", *JOBSET, SHARED, "--dry-run", *words)
    assert run.returncode == 0, run.stderr
    made: dict[str, Any] = yaml.safe_load(run.stdout)
    return made


def pod_of(made: dict[str, Any]) -> dict[str, Any]:
    pod: dict[str, Any] = job_spec_of(made)["template"]["spec"]
    return pod


def job_spec_of(made: dict[str, Any]) -> dict[str, Any]:
    (job,) = made["spec"]["replicatedJobs"]
    spec: dict[str, Any] = job["template"]["spec"]
    return spec


def run_container(cloud: Cloud, made: dict[str, Any]) -> list[str]:
    """Runs the command of the only container as a kubelet would; the job's arguments."""
    (container,) = pod_of(made)["containers"]
    variables = {item["name"]: item["value"] for item in container["env"] or ()}
    command = [expand(word, {"HOME": "/expanded", **variables}) for word in container["command"]]
    # The image has the clone where this home has it.
    home = cloud.folder / "worker0"
    shutil.copytree(cloud.machine.root, home / "rrope_jax")
    command = [word.replace("cd /rrope_jax", f"cd {home}/rrope_jax") for word in command]
    subprocess.run(
        command,
        cwd=home / "rrope_jax",
        env=cloud.environment(**variables) | {"HOME": str(home)},
        check=True,
        capture_output=True,
    )
    arguments, environment, _ = job_of(home)
    assert environment["RROPE_RETRIES"] == "0"
    return list(arguments)


class TestJobSet:
    def test_fields_are_known(self, cloud: Cloud) -> None:
        assert violations(manifest(cloud, "job", *TRICKY), JOBSET_SCHEMA) == []

    def test_fields_are_those_of_the_real_definition(self, cloud: Cloud) -> None:
        path = os.environ.get("JOBSET_CRD")
        if path is None:
            pytest.skip("JOBSET_CRD is not set to a copy of jobset.x-k8s.io_jobsets.yaml")
        (version,) = yaml.safe_load(Path(path).read_text())["spec"]["versions"]
        assert version["name"] == "v1alpha2"
        real = version["schema"]["openAPIV3Schema"]
        assert violations(manifest(cloud, "job"), real) == []
        assert differences(JOBSET_SCHEMA, real) == []

    @pytest.mark.parametrize(
        ("place", "name", "message"),
        [
            ((), "kinds", ".kinds: unknown"),
            (("spec",), "replicas", ".spec.replicas: unknown"),
            (("spec", "failurePolicy"), "maxRestart", ".spec.failurePolicy.maxRestart: unknown"),
        ],
    )
    def test_unknown_fields_are_refused(
        self, cloud: Cloud, place: tuple[str, ...], name: str, message: str
    ) -> None:
        made = manifest(cloud, "job")
        part = made
        for key in place:
            part = part[key]
        part[name] = 1
        assert violations(made, JOBSET_SCHEMA) == [message]

    def test_size(self, cloud: Cloud) -> None:
        made = manifest(cloud, "--num-slices=2", "job")
        (slices,) = made["spec"]["replicatedJobs"]
        spec = job_spec_of(made)
        # 64 chips, 4 of them in a machine.
        assert (slices["replicas"], spec["parallelism"], spec["completions"]) == (2, 16, 16)
        assert pod_of(made)["nodeSelector"] == {
            "cloud.google.com/gke-tpu-accelerator": "tpu-v5p-slice",
            "cloud.google.com/gke-tpu-topology": "4x4x4",
        }
        flat = ("--gke-accelerator=tpu-v6e-slice", "--topology=2x4", "--chips-per-host=8")
        small = manifest(cloud, *flat, "job")
        (container,) = pod_of(small)["containers"]
        assert job_spec_of(small)["parallelism"] == 1
        assert container["resources"] == {"limits": {"google.com/tpu": 8}}

    def test_restarts(self, cloud: Cloud) -> None:
        made = manifest(cloud, "--retries=3", "job")
        assert made["spec"]["failurePolicy"]["maxRestarts"] == 3
        spec = job_spec_of(made)
        (container,) = spec["template"]["spec"]["containers"]
        disruption, codes = spec["podFailurePolicy"]["rules"]
        assert disruption["action"] == "Count"
        assert codes["onExitCodes"]["containerName"] == container["name"]
        # What must not be tried again; 42 and deaths by signals restart.
        assert codes["action"] == "FailJob"
        assert {1, 2} <= set(codes["onExitCodes"]["values"])
        assert not any(c == 42 or c > 127 for c in codes["onExitCodes"]["values"])

    def test_results_go_to_the_share(self, cloud: Cloud) -> None:
        pod = pod_of(manifest(cloud, "job"))
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        (container,) = pod["containers"]
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        assert container["workingDir"] == "/rrope_jax"
        assert volumes[mounts["/rrope_jax/runs"]]["nfs"] == {"server": "10.0.0.2", "path": "/vol"}

    def test_arguments_reach_the_workers_unchanged(self, cloud: Cloud) -> None:
        assert run_container(cloud, manifest(cloud, "job", *TRICKY)) == TRICKY

    def test_value_with_a_quote(self, cloud: Cloud) -> None:
        made = manifest(cloud, "--image=it's ${NAME}", "job")
        assert pod_of(made)["containers"][0]["image"] == "it's ${NAME}"

    def test_is_created(self, cloud: Cloud) -> None:
        cloud.add_recorder("kubectl", "print(sys.stdin.read() if '-f' in words else '')\n")
        run = cloud.run("gke_jobset.sh", *JOBSET, SHARED, "job")
        assert run.returncode == 0
        assert cloud.calls()[1:] == [["kubectl", "create", "-f", "-"]]
        assert yaml.safe_load(run.stdout) == manifest(cloud, "job")
        assert "kubectl delete jobset run" in run.stderr

    def test_cluster_without_jobset(self, cloud: Cloud) -> None:
        cloud.add_recorder("kubectl", "sys.exit(1)\n")
        run = cloud.run("gke_jobset.sh", *JOBSET, SHARED, "job")
        assert run.returncode == 2
        assert "has no JobSet" in run.stderr
        assert len(cloud.calls()) == 1

    def test_refused_by_the_cluster(self, cloud: Cloud) -> None:
        cloud.add_recorder("kubectl", "sys.exit('create' in words)\n")
        run = cloud.run("gke_jobset.sh", *JOBSET, SHARED, "job")
        assert run.returncode == 1
        assert "kubectl logs" not in run.stderr

    @pytest.mark.parametrize(
        ("flag", "what"),
        [
            ("--topology=4x4x", "--topology=4x4x must be"),
            ("--topology=2x2", "has 2 axes, tpu-v5p-slice has 3: 2x2x1, 2x2x2"),
            ("--topology=8x4x4", "--topology=8x4x4 is none of tpu-v5p-slice"),
            ("--topology=1x2x2", "--topology=1x2x2 is none of tpu-v5p-slice"),
            ("--topology=4x4x6", "--topology=4x4x6 is none of tpu-v5p-slice"),
            ("--gke-accelerator=tpu-v6e-slice", "has 3 axes, tpu-v6e-slice has 2: 1x1, 2x2"),
            ("--gke-accelerator=tpu-v5p-podslice", "must be the label of a TPU node pool: tpu-v4"),
            ("--chips-per-host=8", "tpu-v5p-slice of --topology=4x4x4 has machines of 4"),
            ("--image=https://us-docker.pkg.dev/p/r/i:1", "is a URL; give the name that docker"),
            ("--tpu-type=v5p-128", "--tpu-type has no meaning here"),
            ("--gke-accelerator=nvidia-h100-80gb", "must be the label of a TPU node pool"),
            ("--shared=10.0.0.2", "--shared=10.0.0.2 must be SERVER:/PATH"),
            ("--shared=", "not set: RROPE_SHARED"),
        ],
    )
    def test_bad_setting(self, cloud: Cloud, flag: str, what: str) -> None:
        run = cloud.run("gke_jobset.sh", *JOBSET, SHARED, flag, "--dry-run", "job")
        assert (run.returncode, run.stdout, run.stderr.count("\n")) == (2, "", 1)
        assert what in run.stderr

    @pytest.mark.parametrize(
        ("accelerator", "topology", "chips"),
        [
            *(("tpu-v5p-slice", shape, 4) for shape in ("2x2x1", "2x2x4", "4x4x8", "8x8x16")),
            *(("tpu-v5p-slice", shape, 4) for shape in ("4x4x12", "16x16x24")),
            ("tpu-v4-podslice", "2x4x4", 4),
            ("tpu-v5-lite-device", "2x4", 8),
            ("tpu-v5-lite-podslice", "1x1", 1),
            ("tpu-v5-lite-podslice", "2x4", 4),
            ("tpu-v5-lite-podslice", "16x16", 4),
            ("tpu-v6e-slice", "2x4", 8),
            ("tpu-v6e-slice", "8x16", 4),
        ],
    )
    def test_slices_that_there_are(
        self, cloud_of_module: Cloud, accelerator: str, topology: str, chips: int
    ) -> None:
        slice_ = (f"--gke-accelerator={accelerator}", f"--topology={topology}")
        made = manifest(cloud_of_module, *slice_, f"--chips-per-host={chips}", "job")
        machines = math.prod(map(int, topology.split("x"))) // chips
        assert job_spec_of(made)["parallelism"] == machines

    @pytest.mark.parametrize(
        ("accelerator", "topology", "chips"),
        [
            ("tpu-v5-lite-podslice", "3x3", 4),
            ("tpu-v5-lite-podslice", "4x2", 4),
            ("tpu-v5-lite-podslice", "16x32", 4),
            ("tpu-v5-lite-podslice", "4x4", 8),
            ("tpu-v5-lite-podslice", "1x1", 4),
            ("tpu-v5-lite-podslice", "4x4x4", 4),
            ("tpu-v5-lite-device", "4x4", 4),
            ("tpu-v5-lite-device", "2x4", 4),
            ("tpu-v6e-slice", "2x2x1", 4),
            ("tpu-v4-podslice", "4x4", 4),
            ("tpu-v4-podslice", "2x2x8", 4),
        ],
    )
    def test_slices_that_there_are_not(
        self, cloud_of_module: Cloud, accelerator: str, topology: str, chips: int
    ) -> None:
        slice_ = (f"--gke-accelerator={accelerator}", f"--topology={topology}")
        words = (*slice_, f"--chips-per-host={chips}", "--dry-run", "job")
        run = cloud_of_module.run("gke_jobset.sh", *JOBSET, SHARED, *words)
        assert (run.returncode, run.stdout, run.stderr.count("\n")) == (2, "", 1)
        assert accelerator in run.stderr

    def test_no_kubectl(self, cloud: Cloud) -> None:
        run = cloud.run("gke_jobset.sh", *JOBSET, SHARED, "job")
        assert run.returncode == 2
        assert "kubectl is missing" in run.stderr


class TestXpk:
    def test_call(self, cloud: Cloud) -> None:
        cloud.add_recorder("xpk")
        run = cloud.run("xpk.sh", *XPK, "--num-slices=2", "job", "--config=a b")
        assert run.returncode == 0, run.stderr
        (call,) = cloud.calls()
        assert call[:3] == ["xpk", "workload", "create"]
        assert {"--workload=run", "--num-slices=2", "--storage=s", "--max-restarts=10"} <= set(call)
        command = r"cd /rrope_jax && exec bash launch/run_worker.sh job --config=a\ b"
        assert call[-1] == f"--command={command}"
        assert "xpk workload delete --project=p" in run.stderr

    def test_dry_run(self, cloud: Cloud) -> None:
        dry = cloud.run("xpk.sh", *XPK, "--dry-run", "job", *TRICKY)
        assert dry.returncode == 0
        cloud.add_recorder("xpk")
        path = cloud.machine.folder / "bin"
        subprocess.run(["bash", "-c", dry.stdout], env={"PATH": str(path)}, check=True)
        cloud.run("xpk.sh", *XPK, "job", *TRICKY)
        printed, called = cloud.calls()
        assert printed == called

    @pytest.mark.parametrize(
        ("flag", "what"),
        [
            ("--xpk-storage=gs://bucket", "must be the name of a storage that xpk attached"),
            ("--image=gs://bucket/i", "--image=gs://bucket/i is a URL"),
            ("--tpu-type=v5p-100", "two a chip: 8, 16, 32, 64 or a multiple of 128"),
            ("--shared=10.0.0.2:/vol", "--shared has no meaning here"),
        ],
    )
    def test_bad_setting(self, cloud: Cloud, flag: str, what: str) -> None:
        cloud.add_recorder("xpk")
        run = cloud.run("xpk.sh", *XPK, flag, "job")
        assert (run.returncode, run.stdout, run.stderr.count("\n")) == (2, "", 1)
        assert what in run.stderr
        assert cloud.calls() == []

    def test_xpk_fails(self, cloud: Cloud) -> None:
        cloud.add_recorder("xpk", "sys.exit(7)\n")
        run = cloud.run("xpk.sh", *XPK, "job")
        assert run.returncode == 7
        assert "xpk workload delete" not in run.stderr

    def test_no_xpk(self, cloud: Cloud) -> None:
        run = cloud.run("xpk.sh", *XPK, "job")
        assert run.returncode == 2
        assert "xpk is missing; install it: pip install xpk" in run.stderr

    @pytest.mark.slow
    def test_manifest_of_the_real_xpk(self, cloud: Cloud) -> None:
        xpk = shutil.which("xpk") or shutil.which("xpk", path=str(Path(sys.executable).parent))
        xpk = os.environ.get("XPK", xpk)
        if xpk is None:
            pytest.skip("xpk is not installed, nor is XPK set to one")
        cloud.add_recorder("xpk")
        assert cloud.run("xpk.sh", *XPK, "job", *TRICKY).returncode == 0
        (call,) = cloud.calls()
        path = cloud.folder / "manifest.yaml"
        subprocess.run(
            [xpk, *call[1:], "--dry-run", f"--output-manifest-file={path}"],
            env={"PATH": os.environ["PATH"], "HOME": str(cloud.folder)},
            check=True,
            capture_output=True,
        )
        made = yaml.safe_load(path.read_text())
        assert made["spec"]["failurePolicy"]["maxRestarts"] == 10
        assert job_spec_of(made)["parallelism"] == 16
        assert pod_of(made)["terminationGracePeriodSeconds"] == 240
        codes = job_spec_of(made)["podFailurePolicy"]["rules"][0]["onExitCodes"]
        assert codes["operator"] == "NotIn"
        assert {42, 134, 137} <= set(codes["values"])
        assert not {1, 2} & set(codes["values"])
        assert run_container(cloud, made) == TRICKY
