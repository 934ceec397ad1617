"""What tests of `sideworld_questions` and others share."""

from __future__ import annotations

from pave.sideworld.scene import Scene


def visible_labels(one: Scene) -> dict[str, str]:
    """Every visible fact that has names, and some combinations."""
    left, right = one.things
    late = "late" if one.first.jump > 2 else "early"
    return {
        "left shape": left.shape,
        "right shape": right.shape,
        "shapes": f"{left.shape} {right.shape}",
        "left color": left.color,
        "right color": right.color,
        "bigger": f"{one.bigger.shape} {one.bigger is left}",
        "bigger color": one.bigger.color,
        "first": f"{one.first.shape} {one.first is left} {late}",
        "first and bigger": f"{one.first is left} {one.bigger is left}",
        "asked": f"{one.asked} {one.things[one.asked].shape}",
        "seed": str(one.seed // 2 % 16),
    }
