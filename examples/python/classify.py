# SPDX-License-Identifier: Apache-2.0
"""classify.py BUNDLE PHOTO [THREADS]: the five likeliest classes, one a line.

Works with a bundle of either format. A `standalone` one needs Python 3.9 and numpy; Pillow is
needed for image files other than binary PPM.
"""

import re
import sys
from pathlib import Path

# Magic, width, height, greatest value; between them spaces and comments, behind them one space.
_GAP = rb"(?:\s|#[^\n]*\n)+"
_HEADER = re.compile(rb"P6" + _GAP + rb"(\d{1,5})" + _GAP + rb"(\d{1,5})" + _GAP + rb"255\s")


def read_ppm(path):
    """Give the pixels of a binary PPM (P6, 8 bits): what a decoder writes where Pillow is not."""
    import numpy as np

    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise SystemExit(f"{path}: {error.strerror}") from error
    header = _HEADER.match(data)
    if header is None:
        raise SystemExit(f"{path}: it is not a binary PPM (P6) of 8 bits")
    shape = (int(header[2]), int(header[1]), 3)
    size = shape[0] * shape[1] * 3
    if len(data) - header.end() < size or not size:
        raise SystemExit(f"{path}: it ends too early")
    return np.frombuffer(data, np.uint8, size, header.end()).reshape(shape)


def main():
    """Load the bundle with the file that it brings along, and name what the photograph shows."""
    if len(sys.argv) not in {3, 4} or not all(word.isdecimal() for word in sys.argv[3:]):
        raise SystemExit("usage: classify.py BUNDLE PHOTO [THREADS]")
    bundle, photo = sys.argv[1:3]
    if not (Path(bundle) / "tvmattend_runtime.py").is_file():
        raise SystemExit(f"{bundle}: there is no bundle")
    sys.path.insert(0, bundle)
    from tvmattend_runtime import DeviceError, load

    try:
        net = load(bundle, threads=int(sys.argv[3]) if len(sys.argv) == 4 else None)
        image = read_ppm(photo) if photo.endswith(".ppm") else photo
        for index, label, probability in net.classify(image, top=5):
            print(f"{index}\t{probability:.6f}" + (f"\t{label}" if label else ""))
    except DeviceError as error:
        raise SystemExit(f"{error}\n{error.hint}") from error


if __name__ == "__main__":
    main()
