"""Videos: every frame through the segmenter, at its time and size, with a segmenter that finds what the test drew."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from unetdiff import SegmentationPipeline, UNet
from unetdiff.errors import UserError
from unetdiff.segmentation import video
from unetdiff.segmentation.config import InferenceConfig
from unetdiff.segmentation.video import frame_count, segment_video

GREEN, RED = (0, 200, 0), (200, 0, 0)


class BrightnessUNet(UNet):
    """Class 1 where the red channel is above its middle, else class 0."""

    def segment(self, sample: Tensor, *_: Any, **__: Any) -> Tensor:
        return torch.stack([-sample[:, 0], sample[:, 0]], dim=1)


@pytest.fixture(scope="module")
def pipeline() -> SegmentationPipeline:
    unet = BrightnessUNet(encoder={"channels": [2, 2]}, heads={"segmentation": {"num_classes": 2}})
    pipeline = SegmentationPipeline(unet, ["dark", "bright"], [GREEN, RED])
    pipeline.inference = InferenceConfig(batch_size=3)
    return pipeline


def clip(path: Path, size: tuple[int, int], stamps: Sequence[int], rate: Fraction, grey: int = 20) -> Path:
    """A grey clip of (H, W) with a white square, which moves 4 pixels a frame from the left upper corner."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.height, stream.width = size
        stream.pix_fmt = "yuv444p"
        stream.codec_context.time_base = 1 / rate
        for number, stamp in enumerate(stamps):
            pixels = np.full((*size, 3), grey, dtype=np.uint8)
            pixels[:12, 4 * number : 4 * number + 12] = 240
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = stamp, 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def read(path: Path) -> tuple[list[np.ndarray], list[float], Fraction | None]:
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
        rate = container.streams.video[0].average_rate
    return [frame.to_ndarray(format="rgb24") for frame in frames], [frame.time for frame in frames], rate


@pytest.mark.parametrize("size", [(48, 64), (47, 61)])
def test_frames_in_overlays_out(pipeline: SegmentationPipeline, tmp_path: Path, size: tuple[int, int]) -> None:
    source = clip(tmp_path / "in.mp4", size, range(7), Fraction(30000, 1001))
    ticks: list[int] = []
    target, masks = tmp_path / "out" / "in.mp4", tmp_path / "masks"
    assert frame_count(source) == 7
    assert segment_video(pipeline, source, target, masks, progress=lambda: ticks.append(1)) == 7 == len(ticks)
    frames, times, rate = read(target)
    assert rate == Fraction(30000, 1001) and times == read(source)[1]
    assert [path.name for path in sorted(masks.iterdir())] == [f"{number:06d}.png" for number in range(7)]
    for number, frame in enumerate(frames):
        assert frame.shape == (*size, 3)
        with Image.open(masks / f"{number:06d}.png") as image:
            mask = np.asarray(image)
        truth = np.zeros(size, dtype=np.uint8)
        truth[:12, 4 * number : 4 * number + 12] = 1
        assert (mask != truth).mean() < 0.02  # the codec blurs the square's border
        inner = frame[2:10, 4 * number + 2 : 4 * number + 10].reshape(-1, 3).mean(axis=0)
        outer = frame[30:, :].reshape(-1, 3).mean(axis=0)
        np.testing.assert_allclose(inner, 0.45 * 240 + 0.55 * np.array(RED), atol=12)
        np.testing.assert_allclose(outer, 0.45 * 20 + 0.55 * np.array(GREEN), atol=6)
    assert [path.name for path in target.parent.iterdir()] == ["in.mp4"]


def test_uneven_time_stamps_stay(pipeline: SegmentationPipeline, tmp_path: Path) -> None:
    source = clip(tmp_path / "in.mkv", (32, 32), [0, 1, 5, 6, 20], Fraction(10))
    segment_video(pipeline, source, tmp_path / "out.mp4")
    assert read(tmp_path / "out.mp4")[1] == pytest.approx([0.0, 0.1, 0.5, 0.6, 2.0])


def test_a_video_taken_on_its_side_is_turned_upright(pipeline: SegmentationPipeline, tmp_path: Path) -> None:
    source = clip(tmp_path / "in.mp4", (32, 48), range(2), Fraction(10))
    data = source.read_bytes()
    at = data.index(b"tkhd") + 44  # the track's matrix: 90 degrees clockwise (ISO 14496-12, 8.3.2)
    one, minus = (0x10000).to_bytes(4, "big"), (0xFFFF0000).to_bytes(4, "big")
    zero, unit = bytes(4), (0x40000000).to_bytes(4, "big")
    matrix = [zero, one, zero, minus, zero, zero, zero, zero, unit]
    assert data[at : at + 36] == b"".join([one, zero, zero, zero, one, zero, zero, zero, unit])
    source.write_bytes(data[:at] + b"".join(matrix) + data[at + 36 :])
    segment_video(pipeline, source, tmp_path / "out.mp4", tmp_path / "masks")
    frame = read(tmp_path / "out.mp4")[0][0]
    assert frame.shape == (48, 32, 3)
    with Image.open(tmp_path / "masks" / "000000.png") as image:
        mask = np.asarray(image)
    assert mask[:12, -12:].mean() > 0.9 and mask.mean() < 0.15  # what was left above is right above


def test_frames_are_read_as_they_are_written(pipeline: SegmentationPipeline, tmp_path: Path, monkeypatch) -> None:
    source = clip(tmp_path / "in.mp4", (32, 256), range(40), Fraction(10))
    taken: list[int] = []
    ahead: list[int] = []
    frames = video._frames

    def counted(*args: Any) -> Iterator[np.ndarray]:
        for frame in frames(*args):
            taken.append(1)
            yield frame

    monkeypatch.setattr(video, "_frames", counted)
    segment_video(pipeline, source, tmp_path / "out.mp4", progress=lambda: ahead.append(len(taken) - len(ahead)))
    assert len(ahead) == 40 and max(ahead) <= 2 * pipeline.inference.batch_size


def test_what_is_no_video_is_named(pipeline: SegmentationPipeline, tmp_path: Path) -> None:
    target = tmp_path / "out" / "x.mp4"
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(UserError, match="nowhere.mp4: no such file"):
        segment_video(pipeline, tmp_path / "nowhere.mp4", target)
    with pytest.raises(UserError, match="text.mp4: not a readable video"):
        segment_video(pipeline, tmp_path / "text.mp4", target)
    whole = clip(tmp_path / "whole.mp4", (32, 32), range(5), Fraction(10)).read_bytes()
    (tmp_path / "half.mp4").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="half.mp4: not a readable video"):
        segment_video(pipeline, tmp_path / "half.mp4", target)
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        sound = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(sound.encode(frame))
        container.mux(sound.encode())
    with pytest.raises(UserError, match="sound.mp4: no video stream"):
        frame_count(tmp_path / "sound.mp4")
    assert not list(target.parent.iterdir())  # nothing half written stays


def test_a_failure_in_the_middle_leaves_nothing(pipeline: SegmentationPipeline, tmp_path: Path) -> None:
    source = clip(tmp_path / "in.mp4", (16, 512), range(120), Fraction(10))
    seen: list[list[str]] = []

    def stop() -> None:
        seen.append([path.name for path in (tmp_path / "out").iterdir()])
        if len(seen) == 115:  # the codec has let go of its first frames
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        segment_video(pipeline, source, tmp_path / "out" / "in.mp4", progress=stop)
    assert seen[-1] == [".writing-in.mp4"] and not list((tmp_path / "out").iterdir())


def test_without_pyav_the_extra_is_named(pipeline: SegmentationPipeline, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(UserError, match=r"Videos need PyAV. Run .pip install 'unetdiff\[video\]'"):
        segment_video(pipeline, tmp_path / "in.mp4", tmp_path / "out.mp4")
