# SPDX-License-Identifier: Apache-2.0
"""Launches and traffic of every network: `python benchmarks/fusion_ledger.py`.

Both flavours, batch 1 and 4, inputs of 192, 224 and 256 pixels, for a Cortex-A72: DC-AC blocks that
became one kernel, kernel launches an inference, and bytes between kernels, against TVM's own
legalization and FuseOps. The goal: every block, at most 23 launches, at most half of the bytes.
"""

from pathlib import Path

import click

from tvmattend.bench.results import results_option, write_text
from tvmattend.cli.main import errors_told
from tvmattend.frontend import ModelRequest, import_model
from tvmattend.models import REGISTRY
from tvmattend.target import parse_target
from tvmattend.transform import lower_with_report
from tvmattend.transform.rules import DCAC

RESULTS = Path(__file__).parent / "results"
BATCHES, SIZES = (1, 4), (192, 224, 256)
MOST_LAUNCHES, MOST_TRAFFIC = 23, 0.5


@click.command()
@click.option("--model", "models", multiple=True, type=click.Choice(list(REGISTRY)))
@click.option("--target", default="cortex-a72", show_default=True)
@results_option(RESULTS)
def main(models: tuple[str, ...], target: str, results: Path) -> None:
    """Print the table and write `results/fusion_ledger.txt`."""
    spec = parse_target(target)
    lines = [
        f"{'network':<26} batch size  blocks  launches (TVM)   traffic MB (TVM)      share  goal"
    ]
    print(lines[0])
    for model in models or tuple(REGISTRY):
        for batch in BATCHES:
            for size in SIZES:
                request = ModelRequest(model, batch=batch, input_size=size)
                report = lower_with_report(import_model(request).ir_module, spec).fusion
                ours, default = report.fused, report.default
                share = ours.intermediate_bytes / default.intermediate_bytes
                matched, candidates = report.of_rule(DCAC)
                met = (
                    matched == candidates
                    and ours.kernel_launches <= MOST_LAUNCHES
                    and share <= MOST_TRAFFIC
                )
                lines.append(
                    f"{model:<26} {batch:>5} {size:>4}  {matched} of {candidates}  "
                    f"{ours.kernel_launches:>8} {f'({default.kernel_launches})':<5}"
                    f"{ours.intermediate_bytes / 1e6:>13.2f} "
                    f"{f'({default.intermediate_bytes / 1e6:.2f})':<10}{share:>9.3f}  "
                    f"{'met' if met else 'missed'}"
                )
                print(lines[-1], flush=True)
    write_text(results / "fusion_ledger.txt", "\n".join(lines))


if __name__ == "__main__":
    with errors_told():
        main()
