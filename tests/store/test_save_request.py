import os
import signal
import threading

import pytest
import torch

import fnloop as fl
from fnloop.store.save_request import SaveRequest

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="Windows has no SIGUSR1")


def press():
    os.kill(os.getpid(), signal.SIGUSR1)


def test_the_signal_is_noted_once_and_given_back():
    before = signal.getsignal(signal.SIGUSR1)
    request = SaveRequest()
    request.listen()
    press()
    assert (request.taken(), request.taken()) == (True, False)
    request.stop_listening()
    assert signal.getsignal(signal.SIGUSR1) is before


def test_whoever_listened_before_hears_it_too():
    heard = []
    before = signal.signal(signal.SIGUSR1, lambda *_: heard.append(1))
    try:
        one, two = SaveRequest(), SaveRequest()
        one.listen()
        two.listen()
        press()
        assert (one.taken(), two.taken(), heard) == (True, True, [1])
        two.stop_listening()
        one.stop_listening()
        press()
        assert heard == [1, 1]
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_in_another_thread_nothing_is_taken_over():
    before, request = signal.getsignal(signal.SIGUSR1), SaveRequest()
    thread = threading.Thread(target=request.listen)
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGUSR1) is before


@pytest.mark.parametrize("last", [False, True])
def test_a_run_saves_when_it_is_asked_to_and_goes_on(tmp_path, last):
    step = fl.pipe(lambda m, x: m(x).square().mean(), fl.grad, fl.update(fl.optim.sgd(0.01)))
    seen = []

    def ask(state, metrics):
        if int(state.cursor[2]) == 3:
            press()
        seen.append(sorted(path.name for path in tmp_path.glob("step-*")))

    saving = fl.checkpoint(tmp_path, monitor="val/loss", last=last)
    validate = fl.every(7, fl.validate(lambda m, x: m(x).mean(), torch.ones(2, 2)))
    fl.fit(
        step,
        step.init(torch.nn.Linear(2, 1)),
        fl.Batches(torch.ones(40, 2), 2),
        steps=8,
        callbacks=[fl.effect(ask), validate, saving],
    )
    assert seen[3] == ["step-00000003"]
    assert seen[6] == ["step-00000003"]
    assert fl.latest(tmp_path).name == ("step-00000008" if last else "step-00000007")
    assert (tmp_path / "step-00000003").exists() == (not last)
