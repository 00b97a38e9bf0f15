"""The examples that end by themselves, run as a reader runs them: each prints what it promises, and no warning."""

from __future__ import annotations

from pathlib import Path

import pytest

from .servers import EXAMPLES, run

SHARED = "common.py"  # by the other examples


def lines_of(name: str, cwd: Path, *arguments: str) -> list[str]:
    done = run(name, *arguments, cwd=cwd)
    assert (done.returncode, done.stderr) == (0, "")
    assert not list(cwd.iterdir())
    return done.stdout.splitlines()


def test_every_example_has_a_test():
    tests = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    examples = {path.name for path in EXAMPLES.glob("*.py")} - {SHARED}
    assert [name for name in examples if f'"{name}"' not in tests] == []


def test_quickstart_keeps_a_cart_until_the_logout(tmp_path):
    assert lines_of("quickstart.py", tmp_path) == [
        "ada has tea and milk in the cart",
        "after the logout, there is no such session: it was destroyed, and so that no request in flight brings it "
        "back, its id stays dead for 60 s more",
    ]


def test_early_release_lets_others_in_while_the_bank_is_asked(tmp_path):
    assert lines_of("early_release.py", tmp_path) == [
        "checkout: the order is stored; asking the bank",
        "help: opened meanwhile, and the order of tea is there",
        "delivery: opened meanwhile, and the order of tea is there",
        "checkout: the bank agrees to the order of tea",
        "in the end: {'pages': ['help', 'delivery'], 'order': 'tea', 'paid': True}",
    ]


def test_worker_processes_lose_no_update(tmp_path):
    assert lines_of("worker_processes.py", tmp_path) == ["100 of 100 jobs done, the sum is 5050 and should be 5050"]


@pytest.mark.parametrize("server", ["redis_url", "memcached_url", "postgresql", "mariadb"])
def test_two_machines_count_every_visit(server, request, tmp_path):
    found = request.getfixturevalue(server)
    url = found if isinstance(found, str) else found.url
    assert lines_of("two_machines.py", tmp_path, url) == ["100 visits to two machines, 100 of them counted"]
