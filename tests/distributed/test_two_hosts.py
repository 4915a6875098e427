"""A run over two hosts whose link is cut gives what one process gives, bit for bit.

The hosts are network namespaces of this machine with an address each, and share its disk.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

import lora_ensembles
from breadth import LONG
from lora_ensembles import LoraEnsemble, TrainConfig, load_base, load_task, train

IP = shutil.which("ip") or shutil.which("ip", path="/usr/sbin:/sbin")
RAY = Path(sys.executable).with_name("ray")
PORT = 6379
CUT = 30.0  # seconds
TRAINED = 75.0  # seconds that the run takes at least, so that the cut is in the middle
START = 120.0  # seconds that a busy machine may take to start a node
pytest.importorskip("ray", reason="needs the extra `ray`")


def config_of(epochs: int) -> TrainConfig:
    return TrainConfig(
        epochs=epochs,
        batch_size=4,
        learning_rate=(1e-3, 2e-3, 3e-3),
        weight_decay_b=20.0,
        kl_weight=0.1,
        dropout=0.2,
        max_grad_norm=1.0,
        checkpoint_every=4,
        log_every=1,
        max_rows=8,  # as in a slice: products of other shapes are rounded in another way
    )


def run(out: Path, epochs: int, *, workers: int | None = None) -> None:
    task = load_task("world-cqa")
    train(
        LoraEnsemble(*load_base(), num_members=3, seed=5),
        task.train[:40],
        config_of(epochs),
        out=out,
        progress=False,
        on=None if workers is None else "ray",
        workers=workers,
    )


def content(out: Path) -> dict[str, bytes]:
    """Every file of a run but TensorBoard's, whose events hold the time."""
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and "tensorboard" not in path.parts
    }


def ip(*words: str) -> str:
    assert IP is not None
    done = subprocess.run([IP, *words], check=True, capture_output=True, text=True, timeout=30)
    return done.stdout


@dataclass(frozen=True)
class Host:
    """A network namespace, which has the name of its one device, and its address."""

    name: str
    address: str

    def command(self, *words: str | Path) -> list[str]:
        """A command that runs on this host."""
        return [str(IP), "netns", "exec", self.name, *map(str, words)]

    def link(self, state: str) -> None:
        """Set its device up or down."""
        ip("-n", self.name, "link", "set", self.name, state)

    def end(self) -> None:
        """Kill what runs on it, and take it away."""
        with contextlib.suppress(subprocess.CalledProcessError):
            for number in ip("netns", "pids", self.name).split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(number), signal.SIGKILL)
            time.sleep(0.5)
            ip("netns", "del", self.name)


@contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Two hosts with a link between them."""
    net = f"10.{200 + os.getpid() % 50}.{os.getpid() // 50 % 250}"
    hosts = tuple(Host(f"le{os.getpid() % 10**6}{end}", f"{net}.{end}") for end in (1, 2))
    try:
        try:
            for host in hosts:
                ip("netns", "add", host.name)
            one, two = (f"{host.name} netns {host.name}" for host in hosts)
            ip(*f"link add {one} type veth peer name {two}".split())
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespaces here: {error.stderr.strip()}")
        for host in hosts:
            ip("-n", host.name, "addr", "add", f"{host.address}/24", "dev", host.name)
            host.link("up")
            ip("-n", host.name, "link", "set", "lo", "up")
        yield hosts
    finally:
        for host in hosts:
            host.end()


@contextmanager
def removed(folder: str) -> Iterator[None]:
    """Context at the end of which a folder goes."""
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def two_nodes() -> Iterator[tuple[Host, Host, dict[str, str]]]:
    """A Ray cluster of two hosts with one CPU each; yields them and the environment of a driver."""
    folder = tempfile.mkdtemp(prefix="ray-")  # pytest's are too long for the names of Ray's sockets
    places = [str(Path(lora_ensembles.__file__).parents[1]), str(Path(__file__).parents[1])]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(places),
        "OMP_NUM_THREADS": "1",
        "RAY_AUTH_MODE": "disabled",  # nobody else is on this network
    }
    environment.pop("RAY_ADDRESS", None)
    shared = (
        f"--num-cpus=1 --num-gpus=0 --temp-dir={folder} --object-store-memory=100000000 "
        "--disable-usage-stats --include-log-monitor=false"
    ).split()
    with removed(folder), two_hosts() as (head, other):
        address = f"{head.address}:{PORT}"
        for host, role in (
            (head, ["--head", f"--port={PORT}", "--include-dashboard=false"]),
            (other, [f"--address={address}"]),
        ):
            words = host.command(RAY, "start", *role, f"--node-ip-address={host.address}", *shared)
            done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=START)
            assert done.returncode == 0, done.stderr
        yield head, other, {**environment, "RAY_ADDRESS": address}


def wait_for_checkpoints(out: Path, driver: subprocess.Popen[bytes], *, slices: int) -> None:
    """Until every slice has saved its first checkpoint."""
    while len(list(out.glob("workers/members_*/training/checkpoint"))) < slices:
        assert driver.poll() is None, "the run ended before its slices had begun"
        time.sleep(0.2)


def running_on(host: Host, name: str) -> list[int]:
    """The processes of that name on a host."""
    found = []
    for number in map(int, ip("netns", "pids", host.name).split()):
        with contextlib.suppress(OSError):
            if Path(f"/proc/{number}/cmdline").read_bytes().startswith(name.encode()):
                found.append(number)
    return found


@LONG
@pytest.mark.slow
@pytest.mark.parametrize("back", [True, False], ids=["the link comes back", "the other host is lost"])
@pytest.mark.skipif(IP is None or os.geteuid() != 0, reason="needs root, and `ip` of iproute2")
def test_run_over_two_hosts_whose_link_is_cut_is_that_of_one_process(back: bool, tmp_path: Path) -> None:
    began = time.monotonic()
    run(tmp_path / "short", 3)
    epochs = max(6, round(TRAINED / ((time.monotonic() - began) / 3)))
    out = tmp_path / "run"
    with two_nodes() as (head, other, environment):
        words = head.command(sys.executable, __file__, out, epochs)
        with open(tmp_path / "driver.txt", "wb") as told:
            driver = subprocess.Popen(words, env=environment, stdout=told, stderr=told)
        wait_for_checkpoints(out, driver, slices=2)
        assert [len(running_on(host, "ray::train_members")) for host in (head, other)] == [1, 1]
        head.link("down")
        time.sleep(CUT)
        assert driver.poll() is None, f"{epochs} epochs were over before the cut was"
        if back:
            head.link("up")
        assert driver.wait() == 0, (tmp_path / "driver.txt").read_text()
    run(tmp_path / "one", epochs)
    made, expected = content(out), content(tmp_path / "one")
    assert made.keys() == expected.keys()
    assert [name for name in made if made[name] != expected[name]] == []


if __name__ == "__main__":  # the driver, on the first host
    run(Path(sys.argv[1]), int(sys.argv[2]), workers=2)
