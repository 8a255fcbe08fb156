"""``Machine`` and ``Cost``: what a step takes on a cluster, by formulas."""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

from fnloop.trees.equal import table
from fnloop.trees.show import bytes_text


class Link(NamedTuple):
    """What connects two ranks.

    Attributes:
        speed: Bytes that a rank sends in a second.
        latency: Seconds until a message arrives, however small it is.
    """

    speed: float
    latency: float


@dataclasses.dataclass(frozen=True)
class Machine:
    """A machine of a cluster, in which all machines are alike.

    Attributes:
        peak: Floating-point operations that a rank can do in a second.
        utilization: The share of these that forward and backward pass reach.
        memory: Bytes that a rank has.
        bandwidth: Bytes of its memory that a rank reads or writes in a second.
        ranks: How many there are in a machine.
        inside: Connects the ranks of a machine.
        between: Connects each rank with its like in other machines.

    Raises:
        ValueError: The utilization is no share.

    >>> h100 = Machine(989e12, 0.4, 80e9, 3.35e12, 8, Link(360e9, 3.4e-6), Link(40e9, 14e-6))
    >>> f"{h100.compute(1e15):.2f} s"
    '2.53 s'
    >>> f"{h100.ring(1e9, 1, ranks=64):.4f} s"
    '0.0034 s'
    """

    peak: float
    utilization: float
    memory: float
    bandwidth: float
    ranks: int
    inside: Link
    between: Link

    def __post_init__(self) -> None:
        if not 0 < self.utilization <= 1:
            raise ValueError(
                f"utilization is the share of {self.peak:.3g} operations a second that forward and "
                f"backward pass reach, above 0 and at most 1; got {self.utilization}. On GPUs it "
                "is often 0.3 to 0.5."
            )

    def compute(self, flops: float) -> float:
        """Seconds of so many operations of a rank."""
        return flops / (self.peak * self.utilization)

    def touch(self, count: float) -> float:
        """Seconds in which a rank reads or writes so many bytes of its memory."""
        return count / self.bandwidth

    def ring(self, sent: float, times: int, ranks: int, apart: int = 1) -> float:
        """Seconds of gathers, or of reductions into pieces, around one ring of all ranks.

        Each message is passed on ``ranks - 1`` times, and from machine to machine as often as there
        are machines. The ranks of a machine send through all of its connections at once, each a
        part of every message.

        Args:
            sent: Bytes that a rank sends in all of them.
            times: How many there are; a sum over ranks is two.
            ranks: Among how many ranks.
            apart: How many numbers lie between two of these: those that share a model.
        """
        own, machines = self._spread(ranks, apart)
        if machines == 1:
            return times * (ranks - 1) * self.inside.latency + sent / self.inside.speed
        wait = (ranks - machines) * self.inside.latency + (machines - 1) * self.between.latency
        return times * wait + sent / min(self.inside.speed, own * self.between.speed)

    def levels(self, sent: float, times: int, ranks: int, apart: int = 1) -> float:
        """The same, between machines first and then inside of each, by doubling.

        Each rank gathers from its like in the other machines, in as many messages as these can be
        halved; and what it has then, from the ranks of its own machine. Reductions go backwards.
        """
        own, machines = self._spread(ranks, apart)
        far = sent * (machines - 1) / max(1, ranks - 1)
        wait = _halvings(own) * self.inside.latency + _halvings(machines) * self.between.latency
        return times * wait + far / self.between.speed + (sent - far) / self.inside.speed

    def _spread(self, ranks: int, apart: int) -> tuple[int, int]:
        """How many of the ranks are in a machine, and in how many machines they are."""
        own = min(ranks, max(1, self.ranks // apart))
        return own, math.ceil(ranks / own)


def _halvings(count: int) -> int:
    return math.ceil(math.log2(count))


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a rank needs for a step. Printed, it is a table.

    Attributes:
        memory: Bytes at the peak.
        room: Bytes that it has.
        compute: Seconds of the forward and the backward pass.
        update: Seconds in which the optimizer reads and writes the state.
        exchange: Seconds of the exchanges, if nothing else is done meanwhile.
    """

    memory: int
    room: float
    compute: float
    update: float
    exchange: float

    @property
    def fits(self) -> bool:
        """Whether there is memory for it."""
        return self.memory <= self.room

    @property
    def seconds(self) -> float:
        """Seconds of a step that does one thing after the other."""
        return self.compute + self.update + self.exchange

    @property
    def overlapped(self) -> float:
        """Seconds of a step that computes while it exchanges, as much as it can: a bound."""
        return max(self.compute, self.exchange) + self.update

    @property
    def efficiency(self) -> float:
        """The share of `seconds` that the forward and the backward pass take."""
        return self.compute / self.seconds

    def __str__(self) -> str:
        needed = f"{bytes_text(self.memory)} of {bytes_text(round(self.room))}"
        parts = [
            ("memory at the peak", needed if self.fits else f"{needed}: too much"),
            ("forward and backward", _time(self.compute)),
            ("update", _time(self.update)),
            ("exchanges", _time(self.exchange)),
            ("a step", f"{_time(self.seconds)}, of which {self.efficiency:.0%} forward, backward"),
            ("overlapped, at best", _time(self.overlapped)),
        ]
        return table(("on a rank", ""), parts)

    __repr__ = __str__


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1e3 * seconds:.2f} ms"
