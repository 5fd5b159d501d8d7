"""Settings and quoting, which the scripts that start jobs elsewhere share."""

import json
import re
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.launch.cloud import TRICKY, Cloud
from tests.launch.kubernetes import expand
from tests.launch.machine import ROOT

CLUSTER = ROOT / "launch" / "cluster.sh"
# What each script cannot do without.
SETTINGS = {
    "tpu_vm.sh": ("--project=p", "--zone=z", "--tpu-type=v5p-16", "--name=run"),
    "xpk.sh": (
        *("--project=p", "--zone=z", "--tpu-type=v5p-16", "--name=run"),
        *("--gke-cluster=c", "--image=i", "--xpk-storage=s"),
    ),
    "gke_jobset.sh": (
        *("--gke-accelerator=tpu-v5p-slice", "--topology=4x4x4", "--image=i", "--name=run"),
        "--shared=10.0.0.2:/vol",
    ),
    "slurm.sbatch": ("--slurm-partition=p", "--name=run"),
}
SHOW = f"{sys.executable} -S -c 'import json, sys; print(json.dumps(sys.argv[1:]))'"


def quote(*words: str) -> str:
    script = f'source "{CLUSTER}"; quote "$@"; printf %s "$quoted"'
    return subprocess.run(
        ["bash", "-c", script, "test", *words], capture_output=True, text=True, check=True
    ).stdout


# Neither the operating system nor YAML has NUL in text; Python has surrogates that UTF-8 lacks.
_texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))


class TestQuote:
    @staticmethod
    def check(words: list[str]) -> None:
        quoted = quote(*words)
        assert "\n" not in quoted  # xpk puts it into one line of YAML
        assert expand(quoted, {"HOME": "/expanded"}) == quoted  # Kubernetes leaves it as it is
        shown = subprocess.run(
            ["bash", "-c", f"{SHOW} {quoted}"], capture_output=True, text=True, check=True
        )
        assert json.loads(shown.stdout) == words

    def test_tricky_words(self) -> None:
        self.check(TRICKY)

    @pytest.mark.slow
    @settings(max_examples=25, deadline=None)
    @given(st.lists(_texts | st.text("$()'\"\\\n {}a"), min_size=1, max_size=4))
    def test_any_words(self, words: list[str]) -> None:
        self.check(words)

    def test_plain_words_stay_readable(self) -> None:
        assert quote("rrope", "train", "--config=configs/x.py") == (
            "rrope train --config=configs/x.py"
        )


class TestSettings:
    """By the first command of a dry run of tpu_vm.sh."""

    @staticmethod
    def zone(cloud: Cloud, *flags: str, **environment: str) -> str:
        run = cloud.run(
            "tpu_vm.sh", "--dry-run", "--tpu-type=v4-8", "--project=p", *flags, "x", **environment
        )
        assert run.returncode == 0, run.stderr
        found = re.search(r"--zone=(\S*)", run.stdout)
        assert found is not None
        return found[1]

    def test_flag_then_environment_then_file(self, cloud: Cloud) -> None:
        (cloud.machine.root / "launch" / "cluster.env").write_text(
            "# mine\n\nRROPE_ZONE=file\r\nRROPE_NAME=run\n"
        )
        assert self.zone(cloud) == "file"
        assert self.zone(cloud, RROPE_ZONE="environment") == "environment"
        assert self.zone(cloud, "--zone=flag", RROPE_ZONE="environment") == "flag"

    def test_another_file(self, cloud: Cloud) -> None:
        path = cloud.folder / "other.env"
        path.write_text("RROPE_ZONE=other")  # without a line end
        assert self.zone(cloud, RROPE_CLUSTER_ENV=str(path)) == "other"
        run = cloud.run("xpk.sh", "x", RROPE_CLUSTER_ENV="/absent")
        assert (run.returncode, run.stderr) == (
            2,
            "xpk.sh: RROPE_CLUSTER_ENV=/absent does not exist\n",
        )

    def test_file_is_read_not_run(self, cloud: Cloud) -> None:
        (cloud.machine.root / "launch" / "cluster.env").write_text("RROPE_ZONE=$(id)`id`\n")
        assert self.zone(cloud) == r"\$\(id\)\`id\`"

    @pytest.mark.parametrize(
        "line", ["RROPE_ZONES=x", "ZONE=x", "export RROPE_ZONE=x", "RROPE_ZONE"]
    )
    def test_line_that_is_no_setting(self, cloud: Cloud, line: str) -> None:
        (cloud.machine.root / "launch" / "cluster.env").write_text(f"RROPE_PROJECT=p\n{line}\n")
        run = cloud.run("xpk.sh", "x")
        assert (run.returncode, run.stderr.count("\n")) == (2, 1)
        assert f"cluster.env line 2: '{line}'" in run.stderr

    @pytest.mark.parametrize(
        ("flag", "what"),
        [
            ("--zones=x", "there is no flag --zones"),
            ("--zone", "--zone is no flag"),
            ("--keep", "there is no flag --keep"),
            ("--name=Upper", "--name=Upper must be"),
            ("--num-slices=0", "--num-slices=0 must be"),
            ("--retries=-1", "--retries=-1 must be"),
        ],
    )
    def test_bad_flag(self, cloud: Cloud, flag: str, what: str) -> None:
        needed = ["project", "zone", "gke-cluster", "tpu-type", "image", "xpk-storage"]
        run = cloud.run("xpk.sh", *(f"--{name}=a" for name in needed), flag, "x")
        assert (run.returncode, run.stderr.count("\n")) == (2, 1)
        assert what in run.stderr
        assert cloud.calls() == []

    @pytest.mark.parametrize("script", ["tpu_vm.sh", "gke_jobset.sh"])
    @pytest.mark.parametrize(
        "shared",
        [
            *("gs://bucket/runs", "gs://bucket", "s3://bucket/runs", "https://x.example/runs"),
            *("gs:/bucket", "nfs://10.0.0.2/vol", "bucket/runs", "bucket", "10.0.0.2:vol"),
            *("10.0.0.2", ":/vol", "a b:/vol", "-o:/vol", "10.0.0.2://vol"),
        ],
    )
    def test_share_that_is_none(self, cloud_of_module: Cloud, script: str, shared: str) -> None:
        run = cloud_of_module.run(
            script, *SETTINGS[script], f"--shared={shared}", "--dry-run", "job"
        )
        assert (run.returncode, run.stdout, run.stderr.count("\n")) == (2, "", 1)
        assert f"--shared={shared} must be SERVER:/PATH of an NFS share" in run.stderr

    @pytest.mark.parametrize("script", ["tpu_vm.sh", "gke_jobset.sh"])
    @pytest.mark.parametrize("shared", ["10.0.0.2:/vol", "filer-1.example:/a/b c:d", "fs:/"])
    def test_share(self, cloud_of_module: Cloud, script: str, shared: str) -> None:
        run = cloud_of_module.run(
            script, *SETTINGS[script], f"--shared={shared}", "--dry-run", "job"
        )
        assert run.returncode == 0, run.stderr

    @pytest.mark.parametrize("script", ["tpu_vm.sh", "xpk.sh", "gke_jobset.sh", "slurm.sbatch"])
    @pytest.mark.parametrize(
        "words",
        [
            ["rrope", "train", "--workdir=hdfs://host/x"],
            ["rrope", "train", "--workdir", "az://bucket/x"],
            ["rrope", "convert", "--from=a", "--to=gs://bucket/x"],
            ["env", "A=b", "python", "-m", "rrope_jax", "train", "-workdir=https://x.example/x"],
            [".venv/bin/rrope", "train", "--config.data.cache_dir=gs://bucket/x"],
            ["rrope", "convert", "--from=a", "--to=hf://x/y"],
        ],
        ids=lambda words: words[-1],
    )
    def test_command_with_a_url_that_is_not_read(
        self, cloud_of_module: Cloud, script: str, words: list[str]
    ) -> None:
        run = cloud_of_module.run(script, *SETTINGS[script], "--dry-run", *words)
        assert (run.returncode, run.stdout, run.stderr.count("\n")) == (2, "", 1)
        assert "is a URL that rrope does not read there" in run.stderr

    @pytest.mark.parametrize(
        ("script", "setting"),
        [("tpu_vm.sh", "SHARED"), ("xpk.sh", "XPK_STORAGE"), ("gke_jobset.sh", "SHARED")],
    )
    def test_no_share_where_the_workdir_is_in_a_bucket(
        self, cloud_of_module: Cloud, script: str, setting: str
    ) -> None:
        flag = f"--{setting.lower().replace('_', '-')}="
        settings = [word for word in SETTINGS[script] if not word.startswith(flag)]
        words = ["rrope", "train", "--workdir=gs://bucket/x", "--config.data.source=gs://bucket/t"]
        run = cloud_of_module.run(script, *settings, "--dry-run", *words)
        assert run.returncode == 0, run.stderr
        assert "gs://bucket/x" in run.stdout
        assert not re.search(r"nfs|--storage| scp .*:rrope_jax/runs", run.stdout)
        if script == "gke_jobset.sh":
            assert "- name: runs\n                  emptyDir: {}\n" in run.stdout

    @pytest.mark.parametrize(
        "words",
        [
            ["rrope", "generate", "--checkpoint=runs/x", "--prompt=see https://x.example"],
            ["rrope", "generate", "--checkpoint=runs/x", "--prompt=gs://bucket"],
            ["env", "HTTPS_PROXY=http://x.example", "rrope", "train", "--workdir=runs/x"],
            ["python", "other.py", "--to=https://x.example"],
        ],
        ids=lambda words: words[-1],
    )
    def test_other_urls_are_words_like_any(self, cloud_of_module: Cloud, words: list[str]) -> None:
        run = cloud_of_module.run("slurm.sbatch", *SETTINGS["slurm.sbatch"], "--dry-run", *words)
        assert run.returncode == 0, run.stderr

    @pytest.mark.parametrize(
        ("script", "flag"),
        [
            ("slurm.sbatch", "--shared=10.0.0.2:/vol"),
            ("slurm.sbatch", "--topology=4x4x4"),
            ("tpu_vm.sh", "--topology=4x4x4"),
            ("tpu_vm.sh", "--num-slices=2"),
        ],
    )
    def test_setting_of_another_script(
        self, cloud_of_module: Cloud, script: str, flag: str
    ) -> None:
        run = cloud_of_module.run(script, *SETTINGS[script], flag, "--dry-run", "job")
        assert (run.returncode, run.stdout, run.stderr.count("\n")) == (2, "", 1)
        assert f"{flag.partition('=')[0]} has no meaning here" in run.stderr

    @pytest.mark.parametrize("script", ["tpu_vm.sh", "xpk.sh", "gke_jobset.sh", "slurm.sbatch"])
    def test_no_command(self, cloud: Cloud, script: str) -> None:
        run = cloud.run(script, "--zone=z", "--")
        assert (run.returncode, run.stderr.count("\n")) == (2, 1)
        assert run.stderr.startswith(f"{script}: no command")

    def test_example_has_every_setting(self) -> None:
        example = (ROOT / "launch" / "cluster.env.example").read_text()
        listed = re.findall(r"^#?RROPE_([A-Z_]+)=", example, flags=re.MULTILINE)
        script = f'source "{CLUSTER}"; printf %s "$SETTINGS"'
        known = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
        assert sorted(listed) == sorted(known.stdout.split())

    def test_example_is_a_file_of_its_own_format(self, cloud: Cloud) -> None:
        launch = cloud.machine.root / "launch"
        (launch / "cluster.env.example").rename(launch / "cluster.env")
        assert self.zone(cloud, "--zone=z") == "z"
