"""torchvision's compiled operations in Python, for a torch that its compiled part does not fit (a CUDA wheel's).

Detectors call them. On meta they need their schemas and shapes alone; a real run, the reference, needs their values.
"""

from __future__ import annotations

import torch
from torch import Tensor

_SCHEMAS = {
    "nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "roi_align": "(Tensor input, Tensor rois, float spatial_scale, int pooled_height, int pooled_width,"
    " int sampling_ratio, bool aligned) -> Tensor",
}


def provide() -> None:
    """Define what torchvision lacks, and have it call that. Nothing happens where its compiled part was loaded."""
    import torchvision
    from torchvision import extension

    if extension._has_ops():
        return
    for name, schema in _SCHEMAS.items():
        if not hasattr(torch.ops.torchvision, name):
            torch.library.define(f"torchvision::{name}", schema)
    torch.library.impl("torchvision::nms", "CPU", _nms)
    torch.library.impl("torchvision::roi_align", "CPU", torchvision.ops.roi_align.__globals__["_roi_align"])
    torch.library.impl("torchvision::roi_align", "Meta", _pooled)
    extension._has_ops = lambda: True


def _pooled(x: Tensor, rois: Tensor, spatial_scale: float, height: int, width: int, *_: object) -> Tensor:
    return x.new_empty((rois.shape[0], x.shape[1], height, width))


def _nms(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Take the best box, leave out all that overlap it by more than `threshold`, and so on."""
    from torchvision.ops import box_iou

    order = scores.argsort(descending=True, stable=True)
    kept = []
    while order.numel():
        best, order = order[0], order[1:]
        kept.append(best)
        order = order[box_iou(boxes[best][None], boxes[order])[0] <= threshold]
    return torch.stack(kept) if kept else order
