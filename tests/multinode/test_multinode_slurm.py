"""launch/slurm.sbatch under a real Slurm: over two nodes, requeued by every way in which a job loses its machines."""

import pytest

from tests.multinode.cluster import wait_for
from tests.multinode.runs import PATIENCE_S, ROOT, Run, unbroken

STEPS = 60
KEYS = {"optim__steps": STEPS, "optim__global_batch": 8, "checkpoint__every_steps": 5, "engine__timeout_s": 20}


@pytest.fixture(scope="module")
def slurm(cluster):
    """The shell prefix under which Slurm's clients work."""
    return cluster.slurm()


@pytest.fixture(scope="module")
def reference(cluster, corpus, tmp_path_factory):
    """The same run on one process."""
    return unbroken(cluster, tmp_path_factory.mktemp("reference"), corpus, **KEYS)


class SlurmJob:
    """A submitted run."""

    def __init__(self, run, slurm, *options, **variables):
        self.run, self.slurm = run, slurm
        settings = {"RANKS": 2, "PREFLIGHT": 0, "OMP_NUM_THREADS": 1, **variables}
        export = ",".join(["ALL", *(f"{key}={value}" for key, value in settings.items())])
        self.output = run.folder / "slurm.txt"
        words = " ".join(f"'{item}'" for item in run.arguments)
        command = (
            f"cd {ROOT} && sbatch --parsable --nodes 2 --export={export} --output={self.output} "
            f"{' '.join(options)} launch/slurm.sbatch {words}"
        )
        self.number = self.client(command).strip()

    def client(self, command):
        """Run one of Slurm's clients."""
        return self.run.cluster.run("node0", self.slurm + command).stdout

    def facts(self):
        """Return what `scontrol show job` says, as a dict."""
        words = self.client(f"scontrol show job {self.number}").split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait_for_step(self, step):
        """Wait until a checkpoint of at least `step` is there."""
        wait_for(
            lambda: self.run.saved_step() >= step, PATIENCE_S, f"step {step}: {self.facts()['JobState']}\n{self.text()}"
        )

    def wait_for_state(self, *states, restarts=None):
        """Wait for one of Slurm's job states."""

        def there():
            facts = self.facts()
            return facts["JobState"] in states and restarts in (None, int(facts["Restarts"]))

        try:
            wait_for(there, PATIENCE_S, str(states))
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.facts()}\n{self.text()}") from error

    def text(self):
        """Return the job's output so far."""
        return self.output.read_text(errors="replace") if self.output.exists() else ""


def assert_whole_run(job, reference):
    run = job.run
    assert run.status()["state"] == "done", job.text()
    assert [step for step, _ in run.losses()] == list(range(1, STEPS + 1))
    assert [loss for _, loss in run.losses()] == pytest.approx([loss for _, loss in reference.losses()], rel=1e-4)
    wait_for(lambda: not run.left_over(), 30, f"no process left: {run.left_over()}")


def take_back_usr1(job):
    job.client(f"scancel --signal USR1 {job.number}")


def take_back_term(job):
    job.client(f"scancel --signal TERM {job.number}")


def requeue(job):
    job.client(f"scontrol requeue {job.number}")


@pytest.mark.parametrize("how", [take_back_usr1, take_back_term, requeue])
def test_job_that_loses_its_machines_is_queued_again_and_ends_as_if_it_had_not(
    cluster, slurm, corpus, tmp_path, reference, how
):
    job = SlurmJob(Run(cluster, tmp_path, corpus, **KEYS), slurm)
    job.wait_for_step(5)
    how(job)
    job.wait_for_state("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", restarts=1)
    assert job.facts()["JobState"] == "COMPLETED", job.text()
    assert "resumed from" in job.text()
    assert_whole_run(job, reference)
    records = [(row["exit_code"]) for row in job.run.launches()]
    assert records[-1] == 0
    assert records[0] == 75


def test_time_limit_is_met_with_a_checkpoint(cluster, slurm, corpus, tmp_path):
    """--signal fires before the limit of a minute; Slurm may be up to 60 s early."""
    run = Run(cluster, tmp_path, corpus, **{**KEYS, "optim__steps": 100000, "checkpoint__every_steps": 0})
    job = SlurmJob(run, slurm, "--time=2", "--signal=USR1@60")
    wait_for(lambda: run.saved_step() > 0, PATIENCE_S, "a checkpoint before the limit")
    wait_for(lambda: int(job.facts()["Restarts"]) == 1, PATIENCE_S, "the requeue")
    assert run.launches()[0]["exit_code"] == 75
    job.client(f"scancel {job.number}")
    wait_for(lambda: job.facts()["JobState"] == "CANCELLED", 90, "the end")
    wait_for(lambda: not run.left_over(), 60, "no process left")


def test_mistake_is_not_queued_again(cluster, slurm, corpus, tmp_path):
    run = Run(cluster, tmp_path, corpus, **{**KEYS, "optim__global_batch": 7})
    job = SlurmJob(run, slurm)
    job.wait_for_state("FAILED")
    assert "optim.global_batch=7 is not a multiple" in job.text()
    assert int(job.facts()["Restarts"]) == 0
