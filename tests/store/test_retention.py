import itertools
import json
import random

from fnloop.store.retention import Retention
from fnloop.store.topk import TopK


def by_hand(keep, newest, events):
    """What is kept, by its definition: the best of all, and the newest of those that were due."""
    scored = [(count, score) for count, score, _ in events if score is not None]
    best = set()
    for count, score in scored:  # a later one takes the place of a worse one
        best.add((count, score))
        if len(best) > keep:
            best.remove(max(best, key=lambda entry: (entry[1], -entry[0])))
    return {count for count, _ in best}


def test_the_best_and_the_newest_are_kept():
    generator = random.Random(0)
    for keep, newest in itertools.product((1, 2, 3), (0, 1)):
        kept = Retention(TopK(keep), newest)
        events, on_disk = [], set()
        for count in range(1, 40):
            score = generator.random() if generator.random() < 0.5 else None
            due = generator.random() < 0.3
            events.append((count, score, due))
            after = kept.add(count, score, due)
            if after is not None:
                kept = after
                on_disk.add(count)
            for old in kept.unneeded:
                on_disk.remove(old)
                kept = kept.deleted(old)
            assert on_disk == kept.counts
            assert set(kept.top.counts) == by_hand(keep, newest, events)
            assert len(kept.recent) <= newest


def test_what_need_not_be_saved_is_nothing():
    kept = Retention(TopK(1), 0).add(1, 1.0, due=True)
    assert kept.add(2, 2.0, due=True) is None
    assert kept.add(2, None, due=True) is None


def test_what_is_requested_is_kept_until_the_next():
    kept = Retention(TopK(1), 0).add(1, 1.0, due=False).add(2, None, due=False, requested=True)
    assert kept.counts == {1, 2}
    assert kept.add(3, 0.5, due=False).counts == {2, 3}
    assert kept.add(3, None, due=False, requested=True).counts == {1, 3}


def test_a_memo_brings_it_back():
    kept = Retention(TopK(2), 1)
    for count, score in enumerate((3.0, 1.0, 2.0, 5.0), 1):
        kept = kept.add(count, score, due=True) or kept
    again = Retention(TopK(2), 1).recall(json.loads(json.dumps(kept.memo())), same_monitor=True)
    assert again == kept


def test_with_another_monitor_the_best_so_far_are_left_alone():
    kept = Retention(TopK(1), 1).add(1, 1.0, due=True).add(2, 2.0, due=True).add(3, None, due=True)
    assert (kept.top.counts, kept.recent, kept.unneeded) == ((1,), (3,), (2,))
    again = Retention(TopK(1, "max"), 1).recall(kept.memo(), same_monitor=False)
    assert (again.top.counts, again.recent, again.unneeded) == ((), (3,), (2,))


def test_what_was_requested_outlives_the_resume_from_it():
    kept = Retention(TopK(1), 0).add(1, 1.0, due=False).add(2, None, due=False, requested=True)
    again = Retention(TopK(1), 0).recall(kept.memo(), same_monitor=True)
    assert again == kept and again.unneeded == ()
