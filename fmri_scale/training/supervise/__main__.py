"""Plan a launch, run it under supervision, or signal its processes; called by the scripts of launch/.

python -m fmri_scale.training.supervise plan [--ranks-per-node N] FILE... [key=value...]
    writes run_dir/launch/JOB.yaml and JOB.env; prints shell assignments: job run_dir config env_file port
python -m fmri_scale.training.supervise run [options] -- COMMAND...
    runs a launcher; exit codes: 0 done, 75 stopped on request (start again), 130 Ctrl-C, else failed
python -m fmri_scale.training.supervise signal TERM|KILL|0 JOB
    signals the processes of a launch on this machine; prints JSON
python -m fmri_scale.training.supervise port JOB
    prints the port that belongs to a launch's name, the same on every machine
python -m fmri_scale.training.supervise outcome RUN_DIR JOB
    prints the exit code with which the launch ended; nothing if no supervisor has written it
"""

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from fmri_scale.errors import FmriScaleError, LaunchError
from fmri_scale.log import configure_logging, get_logger
from fmri_scale.training.supervise import environment, hosts, pair, port, processes, record, verdict
from fmri_scale.training.supervise.keeper import Job, Keeper

log = get_logger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; return its exit code."""
    args = _parser().parse_args(argv)
    configure_logging()
    try:
        return args.action(args)
    except FmriScaleError as error:
        print(f"launch: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="supervise", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    actions = parser.add_subparsers(required=True)
    plan = actions.add_parser("plan")
    plan.add_argument("items", nargs="+", help="YAML files and key=value")
    plan.add_argument("--ranks-per-node", type=int, default=1)
    plan.add_argument("--job", default="", help="name of the launch")
    plan.set_defaults(action=_plan)
    run = actions.add_parser("run")
    run.add_argument("--job", default="", help="name of the launch")
    run.add_argument("--run-dir", type=Path, help="the run's folder; without it only exit code and orphans count")
    run.add_argument("--env-file", type=Path, help="variables made by `plan`")
    run.add_argument("--hostfile", type=Path, help="nodes that the command reaches over ssh")
    run.add_argument("--grace", type=float, default=120.0, help="seconds between the request to stop and the kill")
    run.add_argument(
        "--settle", type=float, default=5.0, help="seconds for stragglers before they count as left behind"
    )
    run.add_argument("--restarts", type=int, default=0, help="starts after a crash without a new checkpoint between")
    run.add_argument("--follow", default="", help="pattern below the run's folder of the log file to show")
    run.add_argument(
        "--secondary", action="store_true", help="another node's supervisor records the launch and shows it"
    )
    run.add_argument("command", nargs=argparse.REMAINDER, help="-- COMMAND...")
    run.set_defaults(action=_run)
    send = actions.add_parser("signal")
    send.add_argument("name", choices=("TERM", "KILL", "0"))
    send.add_argument("job")
    send.set_defaults(action=_signal)
    ask = actions.add_parser("port")
    ask.add_argument("job")
    ask.add_argument("--here", action="store_true", help="rank 0 will listen on this machine: see that it can")
    ask.set_defaults(action=_port)
    ended = actions.add_parser("outcome")
    ended.add_argument("run_dir", type=Path)
    ended.add_argument("job")
    ended.set_defaults(action=_outcome)
    return parser


def _plan(args: argparse.Namespace) -> int:
    from fmri_scale.training.supervise import plan  # the configuration's libraries load for this command alone

    print(plan.make(args.items, args.ranks_per_node, args.job).as_shell())
    return 0


def _run(args: argparse.Namespace) -> int:
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    env = environment.read(args.env_file) if args.env_file else {}
    if args.env_file:
        env["DS_ENV_FILE"] = str(args.env_file.resolve())  # an absolute name hides ~/.deepspeed_env
    job = Job(
        command,
        args.job or env.get(processes.MARK) or f"{os.getpid()}-{time.time_ns()}",
        args.run_dir.resolve() if args.run_dir else None,
        list(hosts.read_hostfile(args.hostfile)) if args.hostfile else [],
        args.grace,
        args.settle,
        env,
        "" if args.secondary else args.follow,
    )
    return pair.run(job, lambda: _keep(job, args.restarts, not args.secondary))


def _keep(job: Job, restarts: int, records: bool) -> int:
    """Run the job, again after a crash while that brings new checkpoints or restarts are left."""
    left = restarts
    while True:
        began, checkpoint = time.time(), verdict.newest_name(job.run_dir)
        keeper = Keeper(job)
        result = keeper.run()
        log.log(30 if result.code else 20, "%s: %s", job.run_dir or job.command[0], result.message)
        if records:
            record.append(job, began, result)
        if verdict.newest_name(job.run_dir) != checkpoint:
            left = restarts
        if result.code in verdict.FINAL or keeper.requested or left <= 0:
            return result.code
        left -= 1
        log.warning("starting again from the newest checkpoint (%d restarts left without progress)", left)


def _signal(args: argparse.Namespace) -> int:
    found = processes.marked(args.job)
    if args.name == "KILL":
        left = processes.kill_all(args.job)
        reached = len(found) - len(left)
    else:
        chosen = processes.ranks(found) if args.name == "TERM" else []
        reached, left = processes.send(chosen, signal.SIGTERM), found
    print(json.dumps({"signalled": reached, "left": [f"{p.pid} {p.command[:80]}" for p in left]}))
    return 0


def _port(args: argparse.Namespace) -> int:
    chosen = port.of(args.job)
    if args.here and not port.is_free(chosen):
        raise LaunchError(f"port {chosen}, which belongs to the name {args.job}, is taken: choose another name")
    print(chosen)
    return 0


def _outcome(args: argparse.Namespace) -> int:
    codes = [row["exit_code"] for row in record.read(args.run_dir) if row["launch"] == args.job]
    print(codes[-1] if codes else "")
    return 0


if __name__ == "__main__":
    sys.exit(main())
