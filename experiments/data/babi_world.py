"""A little world to tell stories of: people who walk about, and things that they carry."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

PEOPLE = ("mary", "john", "daniel", "sandra")
PLACES = ("bathroom", "hallway", "bedroom", "kitchen", "garden", "office")
THINGS = ("football", "milk", "apple")
GO = ("moved to", "went to", "journeyed to", "travelled to", "went back to")
TAKE = ("got", "picked up", "took", "grabbed")
DROP = ("dropped", "put down", "left", "discarded")

MADE = {1: 2, 2: 6, 3: 12}
"""Tasks that are made here, and sentences before each of their questions."""


@dataclass
class World:
    """Where everybody is, who holds what, and where each thing has been."""

    generator: np.random.Generator
    place: dict[str, str] = field(default_factory=dict)
    holder: dict[str, str] = field(default_factory=dict)
    path: dict[str, list[str]] = field(default_factory=dict)

    def happen(self, things: bool) -> list[str]:
        """Let something happen, and tell it."""
        doings = [lambda: self._go(self._one(PEOPLE))]
        if things:
            doings += [self._take, self._drop]
        # A thing can be taken once somebody is somewhere, and dropped once it is held; else somebody walks.
        doing = doings[self.generator.integers(len(doings))]
        return doing() or self._go(self._one(PEOPLE))

    def _go(self, who: str) -> list[str]:
        places = [place for place in PLACES if place != self.place.get(who)]
        self.place[who] = self._one(places)
        for thing, holder in self.holder.items():
            if holder == who:
                self.path[thing].append(self.place[who])
        return f"{who} {self._one(GO)} the {self.place[who]} .".split()

    def _take(self) -> list[str]:
        able = [
            (who, thing)
            for who, place in self.place.items()
            for thing in THINGS
            if thing not in self.holder and self.path.get(thing, [place])[-1] == place
        ]
        if not able:
            return []
        who, thing = able[self.generator.integers(len(able))]
        self.holder[thing] = who
        self.path.setdefault(thing, [self.place[who]])
        return f"{who} {self._one(TAKE)} the {thing} .".split()

    def _drop(self) -> list[str]:
        if not self.holder:
            return []
        thing = self._one(sorted(self.holder))
        who = self.holder.pop(thing)
        return f"{who} {self._one(DROP)} the {thing} .".split()

    def _one(self, of: tuple[str, ...] | list[str]) -> str:
        return of[self.generator.integers(len(of))]

    def ask(self, task: int) -> tuple[list[str], str] | None:
        """A question that the story answers; ``None`` while there is none."""
        if task == 1:
            who = self._one(sorted(self.place))
            return f"where is {who} ?".split(), self.place[who]
        if task == 2:
            if not self.path:
                return None
            thing = self._one(sorted(self.path))
            return f"where is the {thing} ?".split(), self.path[thing][-1]
        moved = [
            (thing, i)
            for thing, path in sorted(self.path.items())
            for i in range(1, len(path))
            # A place seen twice would leave open which visit is meant.
            if path.count(path[i]) == 1
        ]
        if not moved:
            return None
        thing, i = moved[self.generator.integers(len(moved))]
        path = self.path[thing]
        return f"where was the {thing} before the {path[i]} ?".split(), path[i - 1]


def make_story(
    task: int, questions: int, generator: np.random.Generator
) -> list[tuple[list[str], str | None]]:
    """A story of a task: sentences, and questions with their answers between them.

    Args:
        task: One of :data:`MADE`.
        questions: Questions that it asks.
        generator: Draws everything.
    """
    world, story = World(generator), []
    for _ in range(questions):
        asked = None
        told = 0
        while asked is None or told < MADE[task]:
            story.append((world.happen(task > 1), None))
            told += 1
            asked = world.ask(task) if told >= MADE[task] else None
        story.append(asked)
    return story
