"""Pictures of scenes: places by the light of the moment, subjects and their shadows in them, the foreground before all.

Nothing loops over scenes or frames. A place is painted once per scene (:mod:`places`); subjects are drawn in windows
around them, all subjects of one shape and size at once (:mod:`subjects`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from longtake.pocket.world.drawing import SUBJECT_TINTS
from longtake.pocket.world.laws import Pose, as_frames, camera_x, daylight, pose
from longtake.pocket.world.names import GROUND, SHAPES, SIZE
from longtake.pocket.world.places import grid, paint_places
from longtake.pocket.world.scenes import JITTER, NEAR, RADII, SECOND, Scenes
from longtake.pocket.world.subjects import REACH, Look, draw

_BLOCK = 48  # pictures made at once on a CPU: what fits its caches is several times faster than what does not
_SHADOW = (1.25, 0.20)  # half the width and height of a shadow's window, in radii and in units


@dataclass
class Rendered:
    """What `render` returns.

    Attributes:
        video: ``[scenes, frames, 3, height, width]`` in [0, 1].
        masks: how much of each pixel the first and the second subject are seen in, ``[scenes, frames, 2, height,
            width]``: less where the foreground or the other subject is before them.
        whole: the same as if nothing were before them.
    """

    video: Tensor
    masks: Tensor
    whole: Tensor


def light_weights(level: Tensor) -> Tensor:
    """Shares of the pictures by day, at dusk and by night, ``[..., 3]``, at a daylight level in [0, 1]."""
    return torch.stack([(2 * level - 1).clamp(min=0), 1 - (2 * level - 1).abs(), (1 - 2 * level).clamp(min=0)], -1)


def as_size(size: int | tuple[int, int]) -> tuple[int, int]:
    """Height and width of a picture.

    Raises:
        ValueError: less than 16 pixels high or wide, or wider than 16:9, or higher than wide by more than 16:9.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width) < 16 or not 9 / 16 <= width / height <= 16 / 9 + 1e-6:
        raise ValueError(f"A picture is at least 16 pixels high and wide and at most 16:9, not {width}x{height}.")
    return height, width


def render(
    scenes: Scenes,
    frames: Tensor,
    size: int | tuple[int, int] = SIZE,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Rendered:
    """Renders scenes at frame indices ``[frames]`` or ``[scenes, frames]``: any frame of a take that never ends.

    Args:
        scenes: wherever their tensors are; on the CPU is fastest, as it is there that they are sorted.
        frames: whole numbers, 0 and above.
        size: pixels, one number for a square or (height, width).
        device: where to paint, and where the result is.
        dtype: of the result; painting is in float32.

    Raises:
        ValueError: a size that `as_size` refuses.
    """
    size, device = as_size(size), torch.device(device)
    scenes = scenes.to("cpu")
    frames = as_frames(scenes, frames.cpu())
    height, width = size
    video = torch.empty(len(scenes), frames.shape[1], 3, height, width, dtype=dtype, device=device)
    masks = torch.empty(len(scenes), frames.shape[1], 2, height, width, dtype=dtype, device=device)
    whole = torch.empty_like(masks)
    # pictures that never need the wide place are cut from a narrow one, which has the same pixels
    for wide in (False, True):
        items = ((scenes.camera > 0) == wide).nonzero()[:, 0]
        step = len(items) if device.type != "cpu" else max(1, _BLOCK // max(1, frames.shape[1]))
        for start in range(0, len(items), max(1, step)):
            some = items[start : start + step]
            part = _render(scenes.select(some), frames[some], size, wide, device)
            some = some.to(device)
            video[some], masks[some], whole[some] = (p.to(dtype) for p in (part.video, part.masks, part.whole))
    return Rendered(video, masks, whole)


def backgrounds(
    scenes: Scenes, level: Tensor, size: int | tuple[int, int] = SIZE, device: torch.device | str = "cpu"
) -> Tensor:
    """Places without subjects from where the camera rests, ``[scenes, 3, height, width]``, at daylight ``[scenes]``."""
    rgb, _ = paint_places(scenes.to("cpu"), as_size(size), False, torch.device(device))
    return (rgb * light_weights(level.to(device))[:, :, None, None, None]).sum(1)


def _render(scenes: Scenes, frames: Tensor, size: tuple[int, int], wide: bool, device: torch.device) -> Rendered:
    """One batch of scenes that all need, or all do not need, the wide picture."""
    count, length = frames.shape
    height, width = size
    places, front = paint_places(scenes, size, wide, device)
    level = daylight(scenes, frames)
    weights = light_weights(level).to(device)
    # one matrix product mixes the three lights; the foreground needs no light
    mixed = (weights @ places.flatten(2)).unflatten(2, (3, height, -1))
    if wide:
        camera = camera_x(scenes, frames)
        layers = torch.cat([mixed, front[:, None, None].expand(-1, length, 1, -1, -1)], 2).flatten(0, 1)
        shift = (camera.flatten() * height / 2 + grid(size, True, torch.device("cpu"))[2]).double()
        whole_pixels = shift.floor()
        part = (shift - whole_pixels).float().to(device)[:, None, None, None]
        index = torch.arange(len(layers), device=device)
        at = whole_pixels.long().to(device)
        windows = layers.unfold(3, width, 1)
        near, far = windows[index, :, :, at], windows[index, :, :, at + 1]
        layers = near + (far - near) * part
        canvas, front = layers[:, :3].contiguous(), layers[:, 3]
    else:
        camera = torch.zeros(frames.shape)
        canvas = mixed.flatten(0, 1)
        front = front[:, None].expand(-1, length, -1, -1).flatten(0, 1)
    where = pose(scenes, frames)
    where.x = where.x - camera[..., None]
    lit = weights.flatten(0, 1) @ torch.tensor(SUBJECT_TINTS, device=device)
    painter = _Painter(canvas, front, lit, scenes, where, size)
    for subject in (0, 1):
        painter.shadows(subject)
    for subject in (1, 0):  # the first subject is before the second
        painter.subjects(subject)
    shape = (count, length, 2, height, width)
    masks, whole = painter.masks.view(shape), painter.whole.view(shape)
    return Rendered(canvas.view(count, length, 3, height, width).clamp_(0, 1), masks, whole)


class _Painter:
    """Paints subjects into pictures ``[scenes x frames, 3, height, width]``, in place."""

    def __init__(
        self, canvas: Tensor, front: Tensor, lit: Tensor, scenes: Scenes, where: Pose, size: tuple[int, int]
    ) -> None:
        self.canvas, self.free, self.lit = canvas, 1 - front, lit
        self.scenes, self.where, (self.height, self.width) = scenes, where, size
        self.masks = canvas.new_zeros(len(canvas), 2, self.height, self.width)
        self.whole = torch.zeros_like(self.masks)
        self.length = where.x.shape[1]

    def _groups(self, subject: int) -> list[tuple[int, float, Tensor]]:
        """Shape, largest radius, and the scenes that have such a subject."""
        scenes = self.scenes
        there = scenes.second if subject else torch.ones(len(scenes), dtype=torch.bool)
        groups = []
        for shape in range(len(SHAPES)):
            of_shape = there & (scenes.shape[:, subject] == shape)
            bounds = [r * (1 + JITTER) for r in ((SECOND,) if subject else RADII + tuple(NEAR * r for r in RADII))]
            # by the smallest bound that holds: a window is no larger than need be
            kind = torch.bucketize(scenes.radius[:, subject], torch.tensor(sorted(bounds)))
            for i, bound in enumerate(sorted(bounds)):
                items = (of_shape & (kind == i)).nonzero()[:, 0]
                if len(items):
                    groups.append((shape, bound, items))
        return groups

    def _window(self, x: Tensor, y: Tensor, half_x: float, half_y: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Pixels of windows around centres ``[items]``: their indices in a flattened picture ``[items, h * w]``, the
        shape h, w as their coordinates x ``[items, 1, w]`` and y ``[items, h, 1]``, and which items are in sight."""
        device = self.canvas.device
        high = min(self.height, math.ceil(half_y * self.height) + 1)
        broad = min(self.width, math.ceil(half_x * self.height) + 1)
        aspect = self.width / self.height
        left = ((x + aspect - half_x) * self.height / 2).floor().long().clamp(0, self.width - broad)
        top = ((y + 1 - half_y) * self.height / 2).floor().long().clamp(0, self.height - high)
        seen = ((x.abs() < aspect + half_x) & (y.abs() < 1 + half_y)).nonzero()[:, 0]
        left, top = left[seen].to(device), top[seen].to(device)
        columns = left[:, None] + torch.arange(broad, device=device)
        rows = top[:, None] + torch.arange(high, device=device)
        index = (rows[:, :, None] * self.width + columns[:, None, :]).flatten(1)
        px = ((columns + 0.5) * 2 - self.width) / self.height
        py = ((rows + 0.5) * 2 - self.height) / self.height
        return index, px[:, None, :], py[:, :, None], seen

    def shadows(self, subject: int) -> None:
        """A soft ellipse on the ground: wide and faint under what is high."""
        where, scenes = self.where, self.scenes
        for _, radius, items in self._groups(subject):
            x, height = where.x[items, :, subject].flatten(), where.height[items, :, subject].flatten()
            own = scenes.radius[items, subject][:, None].expand(-1, self.length).flatten()
            index, px, py, seen = self._window(x, torch.full_like(x, GROUND + 0.02), _SHADOW[0] * radius, _SHADOW[1])
            if not len(seen):
                continue
            pictures = (items[:, None] * self.length + torch.arange(self.length)).flatten()[seen].to(px.device)
            x, own, height = (v[seen].to(px.device)[:, None, None] for v in (x, own, height))
            u, v = (px - x) / (1.15 * own), (py - GROUND - 0.02) / (0.28 * own + 0.02)
            soft = (1.15 - torch.hypot(u, v)).clamp(0, 1)
            dark = 0.42 * soft * soft * (3 - 2 * soft) / (1 + 3 * height)
            flat = self.canvas.flatten(2)
            shade = 1 - dark.flatten(1) * self.free.flatten(1)[pictures].gather(1, index)
            index = index[:, None].expand(-1, 3, -1)
            flat[pictures] = flat[pictures].scatter(2, index, flat[pictures].gather(2, index) * shade[:, None])

    def subjects(self, subject: int) -> None:
        """The subject itself, and the masks."""
        where, scenes = self.where, self.scenes
        for shape, radius, items in self._groups(subject):
            x, y = where.x[items, :, subject].flatten(), where.y[items, :, subject].flatten()
            index, px, py, seen = self._window(x, y, REACH * radius, REACH * radius)
            if not len(seen):
                continue
            device = px.device

            def each(
                values: Tensor, items: Tensor = items, seen: Tensor = seen, device: torch.device = device
            ) -> Tensor:
                """A scene's or a frame's value, for every picture that is painted."""
                of = values[items, subject][:, None].expand(-1, self.length) if values.dim() == 2 else values
                of = of[items, :, subject] if values.dim() == 3 else of
                return of.flatten()[seen].to(device)

            own = each(scenes.radius)[:, None, None]
            angle, face = each(where.angle)[:, None, None], each(where.face)[:, None, None]
            dx, dy = px - x[seen].to(device)[:, None, None], py - y[seen].to(device)[:, None, None]
            cos, sin = torch.cos(angle), torch.sin(angle)
            look = Look(
                x=(cos * dx + sin * dy) / (own * face),
                y=(cos * dy - sin * dx) / own,
                pixel=2 / self.height / own,
                gait=each(where.gait)[:, None, None],
                angle=each(scenes.angle)[:, None, None],
                color=each(scenes.color),
                pattern=each(scenes.pattern),
                accessory=each(scenes.accessory),
                accessory_color=each(scenes.accessory_color),
                eyes=each(scenes.eyes),
                sun=scenes.sun[items][:, None].expand(-1, self.length).flatten()[seen].to(device),
            )
            rgb, alpha = draw(shape, look)
            pictures = (items[:, None] * self.length + torch.arange(self.length)).flatten()[seen].to(device)
            rgb = rgb.flatten(2) * self.lit[pictures][:, :, None]
            alpha = alpha.flatten(1)
            shown = alpha * self.free.flatten(1)[pictures].gather(1, index)
            three = index[:, None].expand(-1, 3, -1)
            flat, masks, whole = self.canvas.flatten(2), self.masks.flatten(2), self.whole.flatten(2)
            under = flat[pictures]
            behind = under.gather(2, three)
            flat[pictures] = under.scatter(2, three, behind + (rgb - behind) * shown[:, None])
            if subject == 0:
                hidden = masks[pictures, 1]
                masks[pictures, 1] = hidden.scatter(1, index, hidden.gather(1, index) * (1 - alpha))
            masks[pictures, subject] = torch.zeros_like(self.free.flatten(1)[pictures]).scatter(1, index, shown)
            whole[pictures, subject] = torch.zeros_like(self.free.flatten(1)[pictures]).scatter(1, index, alpha)
