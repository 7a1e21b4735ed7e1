"""Images in, batches out: the sources of training data, and nothing that knows of diffusion.

    train, held_out = data.open("digits")    # or a folder, idx files, parquet
    made = data.load("samples.npz")    # one whole set: images to measure, nothing held out
    ids = data.batch_ids(seed=0, step=0, batch_size=128, n=len(train))
    x, y = train.batch(ids)    # float32 (128, C, H, W) in [-1, 1], int64 (128,)

Inside: `door` (open, load), `digits`, `folder`, `table` (idx, parquet), `arrays` (npz, npy,
safetensors) on `container`, `decode` (one file), `source` and `cache` (all files, once), `images`
(the decoded set), `stream` (the order), `check`.
"""

from fewstep.data.check import Report, check
from fewstep.data.digits import digits
from fewstep.data.door import load, open
from fewstep.data.images import Images, check_batch, check_classes, split_ids
from fewstep.data.stream import batch_ids, order, rank_slice

__all__ = [
    "Images",
    "Report",
    "batch_ids",
    "check",
    "check_batch",
    "check_classes",
    "digits",
    "load",
    "open",
    "order",
    "rank_slice",
    "split_ids",
]
