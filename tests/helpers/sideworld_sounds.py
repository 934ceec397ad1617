"""What tests of `scene` and others share."""

from __future__ import annotations

from dataclasses import replace

from pave.sideworld.scene import (
    SOUNDS,
    Scene,
)


def other_sound(one: Scene) -> Scene:
    kinds = list(SOUNDS)
    return replace(one, sounding=1 - one.sounding, sound=kinds[kinds.index(one.sound) - 3], loudness=0.5)
