"""Two networks that learn from what one of them does: an actor and a critic balance a pole.

Train them, and see in ``learning.png`` how long they keep the pole up, beside a player who pushes
the cart at random::

    fnloop fit examples/actor_critic.py
    fnloop resume runs/actor_critic        # after Ctrl-C: it goes on with the same bits
    fnloop fit examples/actor_critic.py --smoke

The cart and the pole are those of Barto, Sutton and Anderson (1983). Many players play at once; in
each step of training all of them go on by some moves, and both networks learn from these: the
critic how much longer it will last, and the actor to do what lasted longer than the critic thought
(advantage actor-critic, Mnih et al., 2016; advantages by Schulman et al., 2016).

Where the players stand is memory of the stage `Rollout`, and so a part of the state: a run that is
stopped goes on in the middle of every game.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fnloop as fl
from fnloop.cli.app import main

torch.set_num_threads(1)  # threads would only get into each other's way in networks this small

LIMIT = 500
"""Moves after which a game is won."""


class Players(nn.Module):
    """Both networks; each step trains those parameters that are its own, by their names."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.actor = nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 2))
        self.critic = nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 1))


def acceleration(where: Tensor, force: Tensor) -> tuple[Tensor, Tensor]:
    """Of the cart (m/s^2) and of the pole (1/s^2); without friction.

    Args:
        where: float[..., 4]: position of the cart (m), its speed, angle of the pole from upright
            (radians), its speed.
        force: float[...]: on the cart, in newtons.
    """
    gravity, pole, both, half = 9.8, 0.1, 1.1, 0.5  # m/s^2; kg; kg; m, of the pole's length
    _, _, angle, turning = where.unbind(-1)
    sin, cos = angle.sin(), angle.cos()
    push = (force + pole * half * turning.square() * sin) / both
    of_pole = (gravity * sin - cos * push) / (half * (4 / 3 - pole * cos.square() / both))
    return push - pole * half * of_pole * cos / both, of_pole


def move(where: Tensor, action: Tensor) -> Tensor:
    """Where cart and pole are 0.02 seconds after a push to the left (0) or right (1), of 10 N."""
    of_cart, of_pole = acceleration(where, 20.0 * action - 10.0)
    speeds = torch.stack([where[..., 1], of_cart, where[..., 3], of_pole], -1)
    return where + 0.02 * speeds


def fallen(where: Tensor) -> Tensor:
    """Whether the pole leans by more than 12 degrees, or the cart has left its track of 4.8 m."""
    return (where[..., 2].abs() > math.radians(12)) | (where[..., 0].abs() > 2.4)


def pushes(logits: Tensor) -> Tensor:
    """Draw actions."""
    return (torch.rand(logits.shape[:-1]) < logits.softmax(-1)[..., 1]).long()


@fl.tree
class Rollout(fl.base.StepStage):
    """The stage that has the players go on, and gives the step inside what has happened.

    Its memory is where they are, and for how many moves they have been playing. What it is called
    with are places to start from, one for each player, where a game has ended.

    The step inside is given a dict of tensors, one row for a move: where a player was, the action,
    its advantage, and what the critic should have said.

    Args:
        inner: The training step.
        moves: Of each player, in a step.
        players: How many there are.
        discount: Worth of the next move, as a share of this one's.
        trace: Share in an advantage of what the critic says later (the lambda of Schulman et al.).
    """

    wraps: ClassVar = "step"
    label: ClassVar[str] = "rollout"
    inner: Any
    moves: int = 64
    players: int = 32
    discount: float = 0.99
    trace: float = 0.95
    name: str = "rollout"

    def init_state(self, state: fl.State) -> dict[str, Tensor]:
        over = torch.full((self.players,), LIMIT)  # so they all start anew
        return {"where": torch.zeros(self.players, 4), "played": over}

    def taken_back(self, memory: Any) -> Any:
        return {}  # a step that is skipped has been played all the same

    def __call__(self, state: fl.State, x: Tensor) -> tuple[fl.State, dict[str, Any]]:
        own = state[self.name]
        with torch.no_grad(), fl.randomness(state, self.name):
            played, _ = state.skeleton.call(
                lambda model: self._play(model, own["where"], own["played"], x),
                state.params,
                state.buffers,
                True,
            )
        memory, rows, lasted = played
        state, metrics = self.inner(state.put(self.name, memory), rows)
        return state, {**metrics, f"{self.name}/lasted": lasted}

    def _play(
        self, model: Players, where: Tensor, played: Tensor, starts: Tensor
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], fl.Mean]:
        over = fallen(where) | (played >= LIMIT)
        seen, actions, after, ended, ages = [], [], [], [], []
        for _ in range(self.moves):
            where, played = torch.where(over[:, None], starts, where), torch.where(over, 0, played)
            action = pushes(model.actor(where))
            seen.append(where)
            actions.append(action)
            where, played = move(where, action), played + 1
            over = fallen(where) | (played >= LIMIT)
            after.append(where)
            ended.append(over)
            ages.append(played)
        before, then, over = torch.stack(seen), torch.stack(after), torch.stack(ended)
        value, later = value_of(model, before), value_of(model, then)
        # A game that is won would have gone on; one that is lost is worth nothing any more.
        reward = 1 - self.discount  # so that a game without end is worth 1
        surprise = reward + self.discount * later * ~fallen(then) - value
        advantages, following = [], torch.zeros_like(surprise[0])
        for now, last in zip(reversed(surprise), reversed(over), strict=True):
            following = now + self.discount * self.trace * following * ~last
            advantages.append(following)
        advantage = torch.stack(advantages[::-1])
        rows = {
            "where": before.flatten(0, 1),
            "action": torch.stack(actions).flatten(),
            "advantage": (advantage / (advantage.std() + 1e-8)).flatten(),
            "value": (advantage + value).flatten(),
        }
        lasted = fl.Mean((torch.stack(ages) * over).sum(), over.sum())
        return {"where": where, "played": played}, rows, lasted


def value_of(model: Players, where: Tensor) -> Tensor:
    """What the critic says: the share of a game without end that is still to come."""
    return model.critic(where).squeeze(-1)


def critic_loss(model: Players, rows: dict[str, Tensor]) -> Tensor:
    """How far the critic's values are from what came."""
    return F.mse_loss(value_of(model, rows["where"]), rows["value"])


def actor_loss(model: Players, rows: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Small where actions of a large advantage are likely; and if it is still undecided."""
    logits = model.actor(rows["where"])
    surprise = F.cross_entropy(logits, rows["action"], reduction="none")
    entropy = torch.distributions.Categorical(logits=logits).entropy().mean()
    return (surprise * rows["advantage"]).mean() - 0.01 * entropy, {"entropy": entropy}


def lasting(model: Players, starts: Tensor) -> dict[str, Tensor]:
    """For how many moves games last: of the actor, and of a player who pushes at random."""
    return {
        "lasted": lengths(lambda where: model.actor(where), starts).mean(),
        "random": lengths(lambda where: torch.zeros(len(where), 2), starts).mean(),
    }


def lengths(policy: Any, where: Tensor) -> Tensor:
    """float[games]: moves until each has ended."""
    played = torch.zeros(len(where))
    up = torch.ones(len(where), dtype=torch.bool)
    for _ in range(LIMIT):
        where = move(where, pushes(policy(where)))
        played, up = played + up, up & ~fallen(where)
        if not up.any():
            break
    return played


class Curve(fl.base.Effect):
    """Draws how long games last against the moves that were made. It survives a resume."""

    name = "curve"

    def __init__(self, path: Path, moves: int) -> None:
        self.path, self.moves = path, moves
        self.rows: list[tuple[int, float, float]] = []

    def __call__(self, state: fl.State, metrics: Mapping[str, Any]) -> None:
        if "val/lasted" in metrics:
            count = int(state.calls) * self.moves
            numbers = (float(metrics[f"val/{name}"]) for name in ("lasted", "random"))
            self.rows.append((count, *numbers))

    def memo(self) -> Any:
        return self.rows

    def recall(self, memo: Any) -> None:
        self.rows = [tuple(row) for row in memo]

    def smoke(self, folder: Path) -> fl.base.Effect:
        return Curve(folder / self.path.name, self.moves)

    def close(self, status: str) -> None:
        from matplotlib.figure import Figure

        if not self.rows:
            return
        count, lasted, random = zip(*self.rows, strict=True)
        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.subplots()
        axes.plot([n / 1000 for n in count], lasted, label="actor")
        axes.plot([n / 1000 for n in count], random, "--", color="gray", label="at random")
        axes.set(
            xlabel="thousand moves", ylabel="moves until the pole falls", ylim=(0, LIMIT * 1.04)
        )
        axes.legend(loc="center right")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(self.path)


def places(count: int, seed: int) -> Tensor:
    """float[count, 4]: where games start, all close to upright and to the middle."""
    return 0.1 * torch.rand(count, 4, generator=torch.Generator().manual_seed(seed)) - 0.05


def recipe(
    epochs: int = 30,
    lr: float = 3e-3,
    moves: int = 64,
    players: int = 32,
    width: int = 64,
    folder: Path = Path("runs/actor_critic"),
    seed: int = 0,
) -> fl.Recipe:
    """Train an actor and a critic to balance a pole.

    Args:
        epochs: Of 20 steps each.
        lr: Learning rate of the actor at first; it falls to zero with the last step. The critic
            learns three times as fast.
        moves: Of each player, in a step.
        players: Games that are played at once.
        width: Of both networks.
        folder: Of the run: checkpoints, curves.
        seed: Of the initial weights, and of what is drawn in the games.
    """
    data = fl.Data(
        train=fl.Batches(places(20 * players, 0), players),
        validate=fl.Batches(places(100, 1), 100, shuffle=False),
    )
    steps = epochs * len(data.train)

    def adam(rate: float) -> fl.optim.Optimizer:
        falling = fl.optim.adam(fl.schedules.linear(rate, 0.0, steps=steps))
        return fl.optim.chain(fl.optim.clip_by_norm(0.5), falling)

    turns = fl.sequence(
        critic=fl.pipe(critic_loss, fl.grad(only="critic"), fl.update(adam(3 * lr))),
        actor=fl.pipe(actor_loss, fl.grad(only="actor"), fl.update(adam(lr))),
    )
    return fl.Recipe(
        Rollout(turns, moves=moves, players=players),
        model=lambda: Players(width),
        data=data,
        callbacks=[
            fl.every(1, fl.validate(lasting, data), unit="epoch", first=True),
            Curve(folder / "learning.png", moves * players),
            fl.checkpoint(folder, keep=1),
            fl.progress(names=["rollout/lasted", "critic/loss", "actor/entropy", "val/lasted"]),
        ],
        metrics=lasting,
        epochs=epochs,
        folder=folder,
        seed=seed,
    )


if __name__ == "__main__":
    sys.exit(main(["fit", __file__, *sys.argv[1:]]))
