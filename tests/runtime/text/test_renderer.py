import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from sirocco.runtime.errors import EngineUnavailableError, OverloadedError, RequestError, TemplateError
from sirocco.runtime.text.renderer import TemplateRenderer

FOREVER = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


@pytest.fixture
def renderer() -> Iterator[TemplateRenderer]:
    made = TemplateRenderer(seconds=1.0)
    yield made
    made.close()


def worker_pid(renderer: TemplateRenderer) -> int:
    assert renderer._worker
    return renderer._worker._process.pid


HOSTILE = {
    "nested loops": (FOREVER, "longer than 1 s"),
    "a huge power": ("{{ 9 ** (9 ** 9) }}", "longer than 1 s"),
    "a huge string": ("{% set x = 'a' * (message_size * 600) %}", "memory"),
    "a huge format": ("{{ '%9999999999d' % 1 }}", "memory|failed"),
    "a huge list": ("{% set x = [0] * 900000000 %}", "memory"),
    "a huge output": ("{% for i in range(90000) %}{{ 'x' * 1000 }}{% endfor %}", "more than 16 MB"),
    "a huge range": ("{% for i in range(10 ** 9) %}{% endfor %}", "Range too big"),
    "a dunder": ("{{ ''.__class__.__mro__ }}", "unsafe"),
    "a dunder by filter": ("{{ (''|attr('__class__')).mro() }}", "failed"),
    "a dunder by format": ("{{ '{0.__class__.__mro__}'.format('') }}", "unsafe"),
    "a function's globals": ("{{ raise_exception.__globals__.os }}", "unsafe"),
    "a namespace's dunder": ("{% set ns = namespace(__class__=1) %}", "namespace"),
    "a namespace's dunder set": ("{% set ns = namespace() %}{% set ns.__init__ = 1 %}", "namespace"),
    "changing the input": ("{{ messages.append(1) }}", "unsafe"),
    "endless recursion": ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "RecursionError"),
    "deep nesting": ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "RecursionError"),
    "an include": ("{% include '/etc/passwd' %}", "failed"),
    "a syntax error": ("{% if %}", "not valid"),
    "an undefined attribute": ("{{ nothing.at.all }}", "undefined"),
    "a wrong type": ("{{ 'a' + 1 }}", "TypeError"),
    "a refusal": ("{{ raise_exception('Only\nfor   cats') }}", "refused the messages: Only for cats$"),
    "a long refusal": ("{{ raise_exception('x' * 100000) }}", "…"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_templates(name: str, renderer: TemplateRenderer):
    template, message = HOSTILE[name]
    renderer.render("warm", {})
    with pytest.raises(TemplateError, match=message) as caught:
        renderer.render(template, {"messages": [], "message_size": 1_000_000})
    assert len(str(caught.value)) < 700
    assert "/" not in str(caught.value) or name == "an include"
    assert renderer.render("next {{ x }}", {"x": 1}) == "next 1"


def test_ordinary_errors_keep_the_worker(renderer: TemplateRenderer):
    renderer.render("", {})
    pid = worker_pid(renderer)
    for template in ("{% if %}", "{{ raise_exception('no') }}", "{{ 1 / 0 }}"):
        with pytest.raises(TemplateError):
            renderer.render(template, {})
    assert worker_pid(renderer) == pid


def test_a_dead_worker_is_replaced_unnoticed(renderer: TemplateRenderer):
    renderer.render("", {})
    os.kill(worker_pid(renderer), signal.SIGKILL)
    assert renderer.render("{{ 1 + 1 }}", {}) == "2"


def test_large_texts_pass(renderer: TemplateRenderer):
    text = "é" * 4_000_000
    assert renderer.render("{{ text }}", {"text": text}) == text


def test_integers_of_any_size_pass(renderer: TemplateRenderer):
    assert renderer.render("{{ x + 1 }} {{ -x }}", {"x": 2**70}) == f"{2**70 + 1} {-(2**70)}"


@pytest.mark.parametrize("value", [10**5000, "\ud800", object()], ids=["big", "surrogate", "object"])
def test_variables_must_be_json_data(value: object, renderer: TemplateRenderer):
    with pytest.raises(RequestError):
        renderer.render("", {"x": value})


def test_threads_and_loops_share_one_worker(renderer: TemplateRenderer):
    results: list[str] = []

    def work(number: int) -> None:
        results.extend(renderer.render("{{ a }}-{{ b }}", {"a": number, "b": i}) for i in range(20))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()

    async def main() -> list[str]:
        works = [partial(renderer.render, "{{ a }}-{{ b }}", {"a": 9, "b": i}) for i in range(20)]
        return await asyncio.gather(*map(renderer.queued, works))

    assert asyncio.run(main()) == [f"9-{i}" for i in range(20)]
    for thread in threads:
        thread.join()
    assert sorted(results) == sorted(f"{a}-{b}" for a in range(4) for b in range(20))


def test_closing_ends_the_process(renderer: TemplateRenderer):
    renderer.render("", {})
    pid = worker_pid(renderer)
    renderer.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    with pytest.raises(EngineUnavailableError, match="closed"):
        renderer.render("", {})
    with pytest.raises(EngineUnavailableError, match="closed"):
        asyncio.run(renderer.queued(partial(renderer.render, "", {})))


def test_closing_does_not_wait_for_a_render():
    renderer = TemplateRenderer(seconds=60)
    renderer.render("", {})
    errors: list[Exception] = []

    def work() -> None:
        try:
            renderer.render(FOREVER, {})
        except EngineUnavailableError as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    while not renderer._lock.locked():
        time.sleep(0.001)  # nothing tells that the thread has got that far
    renderer.close()
    thread.join(10)
    assert errors and not thread.is_alive()


def test_a_worker_that_does_not_start_is_not_the_callers_fault(
    renderer: TemplateRenderer, monkeypatch: pytest.MonkeyPatch
):
    for name, value in (("sirocco.runtime.text.renderer._MODULE", "no.such.module"), ("sys.executable", "/nothing")):
        monkeypatch.setattr(name, value)
        with pytest.raises(EngineUnavailableError, match="did not start"):
            renderer.render("", {})


def test_a_worker_that_answers_nonsense_is_not_the_callers_fault(
    renderer: TemplateRenderer, monkeypatch: pytest.MonkeyPatch
):
    renderer.render("", {})
    monkeypatch.setattr(renderer._worker, "ask", lambda *_: b"\xc1")
    with pytest.raises(EngineUnavailableError, match="nonsense"):
        renderer.render("", {})
    assert renderer.render("next", {}) == "next"


def test_a_key_press_for_our_process_group_does_not_reach_the_worker(renderer: TemplateRenderer):
    renderer.render("", {})
    assert os.getpgid(worker_pid(renderer)) != os.getpgid(0)


def test_those_who_gave_up_leave_the_queue(renderer: TemplateRenderer):
    release = threading.Event()
    rendered: list[str] = []

    def work(name: str) -> str:
        release.wait(20)
        rendered.append(name)
        return name

    async def main() -> None:
        waiting = [asyncio.create_task(renderer.queued(partial(work, name))) for name in "abc"]
        await asyncio.sleep(0)
        waiting[1].cancel()
        await asyncio.wait([waiting[1]])
        release.set()
        assert [await waiting[0], await waiting[2]] == rendered == ["a", "c"]

    asyncio.run(main())


def test_a_render_is_judged_by_processor_time():
    renderer = TemplateRenderer(seconds=0.3)
    renderer.render("", {})
    pid = worker_pid(renderer)
    os.kill(pid, signal.SIGSTOP)  # as on a machine that has no time for it
    threading.Timer(0.8, os.kill, (pid, signal.SIGCONT)).start()
    assert renderer.render("{{ 1 + 1 }}", {}) == "2"
    renderer.close()


def test_a_machine_without_time_for_a_render_is_overloaded(renderer: TemplateRenderer, monkeypatch: pytest.MonkeyPatch):
    renderer.render("", {})
    os.kill(worker_pid(renderer), signal.SIGSTOP)
    with monkeypatch.context() as patched, pytest.raises(OverloadedError):
        patched.setattr("sirocco.runtime.text.renderer.STALL_SECONDS", 0.1)
        renderer.render("{{ 1 + 1 }}", {})
    assert renderer.render("{{ 1 + 1 }}", {}) == "2"


def test_the_worker_sees_none_of_our_secrets(renderer: TemplateRenderer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SIROCCO_API_KEY", "secret")
    renderer.render("", {})
    assert b"secret" not in Path(f"/proc/{worker_pid(renderer)}/environ").read_bytes()


def test_the_worker_ends_with_its_parent():
    parent = subprocess.Popen(
        [sys.executable, "-P", "-c", _PARENT], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": _source()}
    )
    with parent:
        assert parent.stdout
        pid = int(parent.stdout.readline())
        parent.kill()
    deadline = time.monotonic() + 10
    while not _has_ended(pid):
        assert time.monotonic() < deadline
        time.sleep(0.01)  # nothing tells of the end of a process that is not our child


def _has_ended(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state == "Z"  # nobody has waited for it yet


_PARENT = """
import sys, time
from sirocco.runtime.text.renderer import TemplateRenderer
renderer = TemplateRenderer()
renderer.render("", {})
print(renderer._worker._process.pid, flush=True)
time.sleep(60)
"""


def _source() -> str:
    import sirocco.runtime.text.renderer as module

    return str(Path(module.__file__).parents[3])


def test_rendering_needs_no_heavy_imports():
    code = (
        "import sys; import sirocco.runtime.text.chat, sirocco.runtime.text.tools, sirocco.runtime.text.detokenize;"
        "print([m for m in ('torch', 'transformers', 'jinja2', 'numpy') if m in sys.modules])"
    )
    env = {**os.environ, "PYTHONPATH": _source()}
    assert subprocess.run([sys.executable, "-P", "-c", code], env=env, capture_output=True, text=True).stdout == "[]\n"
