"""The tracker, on real tensors and on fake ones."""

from __future__ import annotations

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from pl_prefopt.planning import MemoryTracker

KIB = 1024


def kibibyte():
    return torch.zeros(256)


def test_it_counts_what_is_held_and_remembers_the_most():
    tracker = MemoryTracker(lambda tensor: "rest")
    with tracker:
        with tracker.making("kept"):
            kept = kibibyte()
        with tracker.phase("one"):
            first, second = kibibyte(), kibibyte()
            del first
        with tracker.phase("two"):
            del second
            third = kept.view(2, 128)  # no memory of its own
    assert tracker.peaks == {"one": {"kept": KIB, "rest": 2 * KIB}, "two": {"kept": KIB, "rest": KIB}}
    del kept
    assert tracker.parts == {"kept": KIB}
    del third
    assert tracker.parts == {}


def test_tensors_move_between_parts_and_parts_are_shared_out():
    tracker = MemoryTracker(lambda tensor: "rest", {"shared": 0.25})
    with tracker, tracker.phase("all"):
        tensor = kibibyte()
        tracker.move(tensor, "shared")
        other = kibibyte()
    assert tracker.parts == {"shared": KIB // 4, "rest": KIB}
    # Together they were most when the first one was still whole, or with both: 1 KiB and 1.25 KiB.
    assert sum(tracker.peaks["all"].values()) == KIB * 5 // 4
    del other


def test_what_the_backward_pass_needs_stays_until_then():
    tracker = MemoryTracker(lambda tensor: "rest")
    with tracker:
        weight = torch.ones(256, requires_grad=True)
        out = (weight.exp() * 2).sum()
        assert tracker.parts["rest"] == 2 * KIB + 4  # the weight, its exponential, the sum
        out.backward()
        del out
        assert tracker.parts["rest"] == 2 * KIB  # the weight and its gradient


def test_fake_tensors_count_like_real_ones_and_tell_no_number():
    tracker = MemoryTracker(lambda tensor: "rest")
    with FakeTensorMode(), tracker:
        tensor = kibibyte()
        assert tensor.sum().item() == 1.0
        assert bool((tensor > 0).all())
    assert tracker.parts == {"rest": KIB}
    del tensor
