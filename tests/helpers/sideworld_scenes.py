"""Scenes of the small world: their visible facts, and the same scene with another sound."""

from __future__ import annotations

from dataclasses import replace

from pave.sideworld.scene import SOUNDS, Scene


def visible_labels(scene: Scene) -> dict[str, str]:
    """Every visible fact that has names, and some combinations."""
    left, right = scene.things
    late = "late" if scene.first.jump > 2 else "early"
    return {
        "left shape": left.shape,
        "right shape": right.shape,
        "shapes": f"{left.shape} {right.shape}",
        "left color": left.color,
        "right color": right.color,
        "bigger": f"{scene.bigger.shape} {scene.bigger is left}",
        "bigger color": scene.bigger.color,
        "first": f"{scene.first.shape} {scene.first is left} {late}",
        "first and bigger": f"{scene.first is left} {scene.bigger is left}",
        "asked": f"{scene.asked} {scene.things[scene.asked].shape}",
        "seed": str(scene.seed // 2 % 16),
    }


def other_sound(scene: Scene) -> Scene:
    """The same scene with another sound, at the jump of the other thing."""
    kinds = list(SOUNDS)
    return replace(scene, sounding=1 - scene.sounding, sound=kinds[kinds.index(scene.sound) - 3], loudness=0.5)
