"""Train PatchCore of anomalib 2 on a folder of normal images and export it for dal_jax.

    pip install anomalib onnx onnxscript "dal-jax[all,onnx]"
    python anomalib_patchcore.py NORMAL OUT --size 64

NORMAL holds images that dal_jax does not see: a detector must not have learned from the images that
are tested, from their references or from those that calibrate it. The backbone has random weights
unless --pretrained downloads those of ImageNet. The last line printed is the path of the ONNX file.
"""

import argparse
from pathlib import Path

import onnx
import torch
from anomalib.data import Folder
from anomalib.engine import Engine
from anomalib.models import Patchcore


def main() -> None:
    """Train and export."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("normal", type=Path, help="folder of normal images")
    parser.add_argument("out", type=Path, help="folder for the network")
    parser.add_argument("--size", type=int, default=64, help="side of the views, pixels")
    parser.add_argument("--pretrained", action="store_true", help="download the backbone's weights")
    given = parser.parse_args()
    torch.manual_seed(0)
    model = Patchcore(
        backbone="resnet18",
        layers=("layer1", "layer2"),
        pre_trained=given.pretrained,
        coreset_sampling_ratio=0.01,  # the smaller the bank, the faster a test
        # The views of dal_jax have their size already.
        pre_processor=Patchcore.configure_pre_processor(image_size=(given.size, given.size)),
        # Raw distances: scaled ones are cut at 1, where many pixels would have equal scores.
        post_processor=False,
        evaluator=False,
        visualizer=False,
    )
    data = Folder(
        name="normal",
        normal_dir=given.normal.resolve(),
        test_split_mode="none",
        val_split_mode="from_train",
        val_split_ratio=0.1,
        num_workers=0,
        seed=0,
    )
    engine = Engine(default_root_dir=given.out, accelerator="cpu", logger=False)
    engine.fit(model, datamodule=data)
    path = model.to_onnx(given.out, input_size=(given.size, given.size))
    onnx.save(onnx.load(path), path)  # with the weights inside, which exporters put beside it
    print(path)


if __name__ == "__main__":
    main()
