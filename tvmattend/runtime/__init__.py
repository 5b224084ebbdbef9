# SPDX-License-Identifier: Apache-2.0
"""What runs on the device: `network.py`, which every bundle carries as `tvmattend_runtime.py`.

`remote.py` stands beside it: the same network on a board over RPC, which needs TVM on this side.
"""

from tvmattend.runtime.network import Network, Prediction, TensorSpec, load

__all__ = ["Network", "Prediction", "TensorSpec", "load"]
