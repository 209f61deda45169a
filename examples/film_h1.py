"""
All tasks of a trained H1 agent side by side in one small GIF. The picture in the README was made with this.

    python examples/film_h1.py h1-medium --out h1.gif

Every task is played by the same agent at the same time, with one search for all of them. A task whose episode ends (a fall)
keeps its last picture, darkened, until the film is over.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from sb3_ezm.video import prefer_egl

prefer_egl()  # before anything imports MuJoCo

import numpy as np  # noqa: E402
from PIL import Image, ImageDraw  # noqa: E402
from stable_baselines3.common.vec_env import DummyVecEnv  # noqa: E402
from stable_baselines3.common.vec_env.base_vec_env import tile_images  # noqa: E402

from sb3_ezm import EZM, make_multitask_env  # noqa: E402

CONTROL_HZ = 50


def parse_arguments() -> argparse.Namespace:
    """
    :return: the command line
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="trained on these tasks: a .zip, an .agent, or the name of a pretrained agent")
    parser.add_argument("--tasks", nargs="+", default=["h1-medium"], help="its suite or tasks (default h1-medium)")
    parser.add_argument("--out", type=Path, default=Path("h1.gif"), help="file to write (default h1.gif)")
    parser.add_argument("--seconds", type=float, default=4.0, help="length of the film (default 4)")
    parser.add_argument("--fps", type=float, default=12.5, help="pictures per second (default 12.5)")
    parser.add_argument("--width", type=int, default=160, help="pixels of one task (default 160)")
    parser.add_argument("--height", type=int, default=120, help="pixels of one task (default 120)")
    parser.add_argument("--colors", type=int, default=64, help="colors of the GIF (default 64)")
    parser.add_argument("--seed", type=int, default=10_000, help="of the episodes (default 10000)")
    return parser.parse_args()


def caption(picture: np.ndarray, text: str, ended: bool) -> np.ndarray:
    """
    :param picture: ``[H, W, 3]``
    :param text: written into the upper left corner
    :param ended: whether to darken it
    :return: a new picture of the same size
    """
    image = Image.fromarray(picture // 2 if ended else picture)
    ImageDraw.Draw(image).text((4, 3), text, fill=(255, 255, 255), stroke_width=1, stroke_fill=(0, 0, 0))
    return np.asarray(image)


def play(args: argparse.Namespace) -> tuple[list[np.ndarray], float]:
    """
    :param args: the command line
    :return: tiled pictures, and how long each is shown, in milliseconds: about ``1 / fps``, a whole number of decisions
    """
    size = {"width": args.width, "height": args.height}
    load = EZM.load if args.model.endswith(".zip") else EZM.pretrained
    repeat = load(args.model).policy.task_set.action_repeat
    env = make_multitask_env(
        args.tasks, seed=args.seed, action_repeat=repeat, vec_env_cls=DummyVecEnv, render_mode="rgb_array", env_kwargs=size
    )  # all pictures of one environment must be taken in the same thread
    names = env.get_attr("task_set")[0].names
    model = load(args.model, env=env)
    observation = env.reset()
    pictures = [caption(np.asarray(picture), name, ended=False) for picture, name in zip(env.get_images(), names, strict=True)]
    frames, ended = [tile_images(pictures)], np.zeros(len(names), dtype=bool)
    rate = CONTROL_HZ / repeat  # decisions per second
    skip = max(1, round(rate / args.fps))
    for step in range(1, round(args.seconds * rate) + 1):
        actions, _ = model.predict(observation, deterministic=True)
        observation, _, dones, _ = env.step(actions)
        due = step % skip == 0
        drawn = env.get_images() if due else pictures
        for index, name in enumerate(names):
            if not ended[index] and dones[index]:  # what is drawn now belongs to the next episode: keep the last picture
                ended[index] = True
                pictures[index] = pictures[index] // 2
            elif due and not ended[index]:
                pictures[index] = caption(np.asarray(drawn[index]), name, ended=False)
        if due:
            frames.append(tile_images(pictures))
    env.close()
    return frames, 1000 * skip / rate


def main() -> None:
    """Play, draw, write."""
    args = parse_arguments()
    frames, duration = play(args)
    images = [Image.fromarray(frame).quantize(args.colors, dither=Image.Dither.NONE) for frame in frames]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    images[0].save(args.out, save_all=True, append_images=images[1:], duration=round(duration), loop=0, optimize=True)
    print(f"{args.out}: {len(images)} pictures, {args.out.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
