"""`python -m hubrouter` and the script `hubrouter`: the command with all its exit codes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from conftest import MODELS, PROMPT

SCRIPT = Path(sys.executable).with_name("hubrouter")
MODULE = [sys.executable, "-m", "hubrouter"]


def run(
    *arguments: str, cwd: Path | None = None, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    command = [*MODULE, *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=cwd, env=env, timeout=120
    )


def test_it_routes_with_the_package(tmp_path: Path) -> None:
    arguments = ["route", "--json", "--device", "cpu", PROMPT]
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["ranked"][0]["model"] == "DBD-research-group/AudioProtoPNet-20-BirdSet-XCL"
    script = subprocess.run([SCRIPT, *arguments], capture_output=True, text=True, check=True)
    assert json.loads(script.stdout)["ranked"] == answer["ranked"]


def test_every_command_is_there() -> None:
    done = run("--help")
    assert done.returncode == 0 and done.stderr == ""
    for command in ("route", "learn", "hub", "generation", "doctor", "report", "schema"):
        assert f"\n  {command} " in done.stdout
    assert run("--version").stdout.startswith("hubrouter ")


def test_exit_codes(tmp_path: Path) -> None:
    assert run("route", "--tpo", "3").returncode == 2
    assert "--top" in run("route", "--tpo", "3").stderr
    assert run().returncode == 2
    assert run("route", "--router", str(tmp_path / "no"), "a").returncode == 1
    done = run("route", "a", env={**os.environ, "HUBROUTER_HOME": str(tmp_path)})
    assert done.returncode == 1 and str(tmp_path) in done.stderr


def test_a_store_is_built_and_read(tmp_path: Path) -> None:
    models, store = tmp_path / "models.jsonl", str(tmp_path / "store")
    models.write_text("".join(json.dumps(model) + "\n" for model in MODELS))
    assert run("hub", "build", "--models", str(models), "--out", store).returncode == 0
    done = run("route", "--router", store, "--json", "Find the names of persons.")
    assert json.loads(done.stdout)["ranked"][0]["model"] == "acme/ner"


def test_a_reader_that_goes_away_is_no_error() -> None:
    with subprocess.Popen([*MODULE, "hub", "list"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(60) == 0


@pytest.mark.skipif(
    signal.getsignal(signal.SIGINT) is signal.SIG_IGN, reason="children ignore SIGINT as well"
)
def test_ctrl_c_ends_the_command_at_once() -> None:
    arguments = [*MODULE, "route", "--device", "cpu", "--json"]
    pipe = subprocess.PIPE
    with subprocess.Popen(arguments, stdin=pipe, stdout=pipe, stderr=pipe) as process:
        assert process.stdin is not None and process.stdout is not None
        # It is at work once it has answered a line; then it waits for the next one.
        process.stdin.write(PROMPT.encode() + b"\n")
        process.stdin.flush()
        assert json.loads(process.stdout.readline())["ranked"]
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        code = process.wait(30)
        assert process.stderr is not None and process.stderr.read() == b""
    assert code in (-signal.SIGINT, 130) and time.monotonic() - began < 5
