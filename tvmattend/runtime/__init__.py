# SPDX-License-Identifier: Apache-2.0
"""What runs on the device: every bundle carries it as `tvmattend_runtime.py` (`bundle/wrapper.py`).

`remote.py` stands beside it: the same network on a board over RPC, which needs TVM on this side.
"""

from tvmattend.runtime.network import Network, Prediction, TensorSpec, load

__all__ = ["Network", "Prediction", "TensorSpec", "load"]
