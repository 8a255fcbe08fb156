import functools
import signal
import weakref

import pytest

from fnloop.values.signals import passing_over


class Handler:
    def method(self, signum, frame):
        raise TimeoutError("over")

    __call__ = method


def function(signum, frame):
    raise TimeoutError("over")


def removing(*arguments):
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    raise TimeoutError("over")


@pytest.fixture
def installed(request):
    before = signal.signal(signal.SIGALRM, request.param)
    yield
    signal.signal(signal.SIGALRM, before)


def ring():
    signal.raise_signal(signal.SIGALRM)


def fail():
    raise OSError(28, "full")


def wrap(call):
    try:
        call()
    except OSError as error:
        raise ValueError("not saved") from error


@pytest.mark.parametrize(
    "installed",
    [function, Handler().method, Handler(), functools.partial(Handler.method, Handler()), removing],
    ids=["function", "method", "object", "partial", "removing"],
    indirect=["installed"],
)
@pytest.mark.parametrize(("call", "kind"), [(ring, OSError), (lambda: wrap(ring), ValueError)])
def test_what_a_handler_raises_is_let_out_also_where_another_error_was_made_from_it(
    installed, call, kind
):
    with pytest.raises(TimeoutError, match="over"), passing_over(kind):
        call()


@pytest.mark.parametrize("installed", [function], indirect=True)
def test_a_failure_is_passed_over_also_one_that_comes_after_a_handlers(installed):
    with passing_over(OSError):
        fail()
    with passing_over(ValueError):
        wrap(fail)
    with pytest.raises(ValueError, match="other"), passing_over(OSError):
        raise ValueError("other")
    try:
        ring()
    except TimeoutError:
        with passing_over(OSError):
            fail()


def test_an_error_that_is_passed_over_is_gone_at_once():
    class Held:
        pass

    def failing():
        held = Held()
        gone.append(weakref.ref(held))
        raise OSError(28, "full")

    gone = []
    with passing_over(OSError):
        failing()
    assert gone[0]() is None
