import pytest

from sirocco.runtime.pace import Pace


def run(pace: Pace, steps: int, used: list[int], seconds: dict[int, float], rows: int = 4) -> set[int]:
    """Take steps as long as the number of threads makes them; the numbers that were used."""
    seen = set()
    for _ in range(steps):
        seen.add(used[-1])
        pace.observe(rows, seconds[used[-1]])
    return seen


def test_all_but_one_is_kept_where_it_is_faster() -> None:
    used = [4]
    pace = Pace(4, used.append)
    run(pace, 1000, used, {4: 1.0, 3: 0.8})
    assert used[-1] == 3
    run(pace, 2000, used, {4: 0.7, 3: 0.8})  # the other program has gone
    assert used[-1] == 4


def test_trials_that_lose_become_rare() -> None:
    used = [2]
    pace = Pace(2, used.append)
    durations = {2: 1.0, 1: 1.6}
    slow = 0
    for _ in range(20000):
        slow += used[-1] == 1
        pace.observe(8, durations[used[-1]])
    assert used[-1] == 2
    assert 0 < slow < 150


def test_steps_of_other_sizes_are_not_compared() -> None:
    used = [4]
    pace = Pace(4, used.append)
    for i in range(5000):
        pace.observe(1 + i % 2, 1.0)
    assert used == [4]
    run(pace, 450, used, {4: 1.0, 3: 1.0})
    pace = Pace(4, used.append)
    assert 3 in run(pace, 410, used, {4: 1.0, 3: 1.0})
    pace.observe(9, 1.0)  # a request has come in the middle of a trial
    assert used[-1] == 4


def test_one_thread_stays() -> None:
    used = [1]
    run(Pace(1, used.append), 3000, used, {1: 1.0})
    assert used == [1]


@pytest.mark.parametrize("every", [5, 20, 25, 30, 33, 40, 60, 1000])
def test_trials_take_few_steps_however_often_the_rows_change(every: int) -> None:
    used = [2]
    pace = Pace(2, used.append)
    durations = {2: 1.0, 1: 1.9}
    slow = 0
    for step in range(20000):
        slow += used[-1] == 1
        pace.observe(1 + step // every % 2, durations[used[-1]])
    assert slow <= 20000 // 20
