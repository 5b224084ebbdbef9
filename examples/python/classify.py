# SPDX-License-Identifier: Apache-2.0
"""classify.py BUNDLE PHOTO [THREADS]: the five likeliest classes, one a line.

Works with a bundle of either format. A `standalone` one needs Python 3.9 and numpy; Pillow is
needed for image files other than binary PPM.
"""

import sys
from pathlib import Path


def read_ppm(path):
    """Give the pixels of a binary PPM (P6, 8 bits): what a decoder writes where Pillow is not."""
    import numpy as np

    data = Path(path).read_bytes()
    fields, at = [], 0
    while len(fields) < 4:
        end = at
        while end < len(data) and not data[end : end + 1].isspace():
            end += 1
        if data[at : at + 1] == b"#":
            end = data.index(b"\n", at)
        elif end > at:
            fields.append(data[at:end])
        at = end + 1
    width, height = int(fields[1]), int(fields[2])
    if fields[0] != b"P6" or fields[3] != b"255":
        raise SystemExit(f"{path} is not a binary PPM of 8 bits")
    return np.frombuffer(data, np.uint8, 3 * width * height, at).reshape(height, width, 3)


def main():
    """Load the bundle with the file that it brings along, and name what the photograph shows."""
    if len(sys.argv) not in {3, 4}:
        raise SystemExit("usage: classify.py BUNDLE PHOTO [THREADS]")
    bundle, photo = sys.argv[1:3]
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
