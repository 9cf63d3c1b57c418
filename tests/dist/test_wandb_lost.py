"""W&B that cannot be reached, refuses the key or is killed costs a run one warning, no step and no number."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from fmri_scale.training.metrics import read_metrics
from tests.helpers.spawn import TRAINEE, free_port, run_ranks
from tests.helpers.tiny_training import arguments, write_tiny_corpus

pytestmark = pytest.mark.dist

STEPS = 4


class Refuse(BaseHTTPRequestHandler):
    """A server that knows no key."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = json.dumps({"errors": [{"message": "invalid API key"}]}).encode()
        self.send_response(401)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST

    def log_message(self, *words: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def refusing() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Refuse)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def ended(tmp_path_factory, refusing):
    """One rank that trains `refused`, `unreachable` and `killed`, and its folder."""
    folder = tmp_path_factory.mktemp("wandb")
    corpus = write_tiny_corpus(folder / "corpus")
    key, nowhere = {"WANDB_API_KEY": "x" * 40}, f"http://127.0.0.1:{free_port()}"
    wanted = {
        "refused": {"wandb": {**key, "WANDB_BASE_URL": refusing}},
        "unreachable": {"wandb": {**key, "WANDB_BASE_URL": nowhere}},
        "killed": {"wandb": {}, "kill_wandb": 2},
    }
    jobs = [
        {"arguments": arguments(folder / name, corpus, optim__steps=STEPS, log__wandb="auto"), "faults": faults}
        for name, faults in wanted.items()
    ]
    (folder / "jobs.json").write_text(json.dumps(jobs))
    (process,) = run_ranks([str(folder / "jobs.json")], 1, folder, TRAINEE)
    assert process.code == 0
    return folder, process


def log_of(run_dir: Path) -> str:
    return (run_dir / "logs" / "rank_0.log").read_text()


@pytest.mark.parametrize("name", ["refused", "unreachable", "killed"])
def test_run_goes_on_to_its_end(ended, name):
    folder, _ = ended
    assert json.loads((folder / name / "record_0.json").read_text())["code"] == 0
    assert [row["step"] for row in read_metrics(folder / name)] == list(range(1, STEPS + 1))


@pytest.mark.parametrize(("name", "reason"), [("refused", "401"), ("unreachable", "")])
def test_what_could_not_be_sent_is_kept_for_later(ended, name, reason):
    folder, _ = ended
    (log,) = (folder / name).glob("wandb/offline-run-*/*.wandb")
    assert log.stat().st_size > 1000
    told = [line for line in log_of(folder / name).splitlines() if "W&B" in line]
    assert ["W&B cannot start online (" in told[0], "send it later with: wandb sync" in told[1]] == [True, True]
    assert reason in told[0]
    assert len(told) == 2


def test_lost_service_is_said_once_without_a_traceback(ended):
    folder, process = ended
    assert log_of(folder / "killed").count("W&B is lost (") == 1
    assert "Traceback" not in process.err
