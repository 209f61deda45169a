"""Pictures of different sizes from several tasks, side by side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sb3_ezm.multitask.watch import MethodExtension


class EqualPictures(MethodExtension):
    """``get_images`` of a vector environment: smaller pictures get a black margin, so that they can be tiled."""

    def __call__(self) -> Sequence[np.ndarray | None]:
        """
        :return: pictures ``[H, W, 3]``, all as high as the tallest and as wide as the widest
        """
        images: Sequence[np.ndarray | None] = self.method()
        sizes = {image.shape[:2] for image in images if isinstance(image, np.ndarray) and image.ndim == 3}
        if len(sizes) < 2 or any(image is None for image in images):
            return images
        height, width = (max(size[axis] for size in sizes) for axis in (0, 1))
        return [
            np.pad(image, ((0, height - image.shape[0]), (0, width - image.shape[1]), (0, 0)))
            for image in images
            if image is not None
        ]
