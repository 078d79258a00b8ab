"""Segmentation of videos with PyAV: frames to a video of overlays, one batch at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch

from unetdiff.errors import FileError, UserError
from unetdiff.files.folders import regular_file
from unetdiff.files.images import save_image
from unetdiff.files.writing import file_errors, make_folder, write_file
from unetdiff.segmentation.pipeline import SegmentationPipeline

__all__ = ["frame_count", "require_pyav", "segment_video"]

MIN_SIDE = 16  # x264's smallest height and width; smaller overlays are padded
CRF = "18"  # x264's constant rate factor, visually lossless
BT709 = 1  # ffmpeg's number of BT.709 as matrix, primaries and transfer


def segment_video(
    pipeline: SegmentationPipeline,
    source: str | Path,
    target: str | Path,
    masks: str | Path | None = None,
    autocast: torch.dtype | None = None,
    progress: Callable[[], Any] = lambda: None,
) -> int:
    """Write the overlays of a video's frames as H.264 in MP4, with its size, frame rate and time stamps, without audio.

    Written to a temporary file and renamed. Frames are rotated upright by the file's metadata.

    Args:
        pipeline: the segmentation pipeline, with its `inference` options.
        source: the video.
        target: the .mp4 to write.
        masks: folder for the masks as palette PNG, 000000.png and so on; None: not written.
        autocast: as in a call of the pipeline.
        progress: called after each frame.

    Returns:
        The number of frames.

    Raises:
        UserError: PyAV is not installed, or the file is not a video, damaged, or without frames.
    """
    av = require_pyav()
    target = Path(target)
    count = 0

    def write(aside: Path) -> None:
        nonlocal count
        stamps: deque[int] = deque()
        with _opened(source) as container, av.open(str(aside), "w", format="mp4") as output:
            video = container.streams.video[0]
            video.thread_type = "AUTO"
            encoder: Any = None
            frames = _frames(container, video, str(source), stamps)
            for result in pipeline.stream(frames, autocast=autocast):
                overlay = np.asarray(result.overlay)  # (H, W, 3)
                encoder = encoder or _encoder(output, video, overlay.shape[:2])
                overlay = np.pad(overlay, [*((0, max(0, MIN_SIDE - n)) for n in overlay.shape[:2]), (0, 0)], "edge")
                frame = av.VideoFrame.from_ndarray(overlay, format="rgb24")
                frame = frame.reformat(format=encoder.pix_fmt, dst_colorspace="ITU709")
                frame.pts, frame.time_base = stamps.popleft(), video.time_base
                output.mux(encoder.encode(frame))
                if masks is not None:
                    save_image(result.palette_image, Path(masks) / f"{count:06d}.png")
                count += 1
                progress()
            if encoder is None:
                raise FileError.of(source, "video has no frames", "Replace or remove it.")
            output.mux(encoder.encode())

    with file_errors(target, "Give another --output."):
        for folder in (target.parent, *([] if masks is None else [Path(masks)])):
            make_folder(folder)
        try:
            write_file(target, write)
        except av.error.FFmpegError as error:
            raise FileError.of(target, f"cannot be written ({error.strerror})", "Give another --output.") from None
    return count


def frame_count(source: str | Path) -> int | None:
    """Number of frames by a video's metadata; None if missing. Raises UserError as `segment_video`."""
    with _opened(source) as container:
        return container.streams.video[0].frames or None


def require_pyav() -> Any:
    """The `av` package; UserError if it is not installed."""
    try:
        import av
    except ImportError:
        raise UserError("Videos need PyAV. Run `pip install 'unetdiff[video]'`.") from None
    return av


def _opened(source: str | Path) -> Any:
    """The file as a PyAV container with a video stream."""
    av = require_pyav()
    regular_file(source, "Give the path of a video.")
    try:
        container = av.open(str(source))
    except (av.error.FFmpegError, ValueError, OSError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise FileError.of(source, f"not a readable video ({reason})", "Replace or remove it.") from None
    if not container.streams.video:
        container.close()
        raise FileError.of(source, "no video stream", "Give a video.")
    return container


def _frames(container: Any, video: Any, source: str, stamps: deque[int]) -> Iterator[np.ndarray]:
    """Upright frames (H, W, 3) uint8 of one size; appends the time stamp of each to `stamps`."""
    av = require_pyav()
    first: tuple[int, int] | None = None
    number, rate = 0, _rate(video)
    try:
        for number, frame in enumerate(container.decode(video)):
            image = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
            size = (image.shape[0], image.shape[1])
            first = first or size
            if size != first:
                raise FileError.of(source, f"frames must have one size (got {first} and {size})", "Re-encode it.")
            stamps.append(round(number / (rate * video.time_base)) if frame.pts is None else frame.pts)
            yield np.ascontiguousarray(image)
    except av.error.FFmpegError as error:
        reason = f"damaged after frame {number} ({error.strerror})"
        raise FileError.of(source, reason, "Replace or remove it.") from None


def _rate(video: Any) -> Fraction:
    """Frames per second, by metadata or else estimated by ffmpeg."""
    return video.average_rate or video.guessed_rate or Fraction(25)


def _encoder(output: Any, video: Any, size: tuple[int, int]) -> Any:
    """An H.264 stream of `size` (H, W) with the source's frame rate and time base.

    Odd sizes need full chroma resolution (yuv444p), which fewer players support.
    """
    stream = output.add_stream("libx264", rate=_rate(video))
    stream.height, stream.width = (max(MIN_SIDE, side) for side in size)
    stream.pix_fmt = "yuv420p" if size[0] % 2 == size[1] % 2 == 0 else "yuv444p"
    stream.options = {"crf": CRF}
    context = stream.codec_context
    context.time_base = video.time_base
    context.colorspace = context.color_primaries = context.color_trc = BT709
    return stream
