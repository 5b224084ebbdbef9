/* SPDX-License-Identifier: Apache-2.0 */
/* golden THREADS < inputs > outputs: one inference, by which `tvmattend build --verify` tests the
 * static library where no Python can load the shared one. */
#include <stdio.h>
#include <stdlib.h>

#include "network.h"

enum { INPUTS = NETWORK_NUM_INPUTS, OUTPUTS = NETWORK_NUM_OUTPUTS };

static int failed(const char *what) {
  fprintf(stderr, "%s: %s\n", what, network_last_error());
  return 1;
}

int main(int count, char **words) {
  network_buffer buffers[INPUTS + OUTPUTS];
  for (size_t i = 0; i < INPUTS + OUTPUTS; ++i) {
    const size_t bytes = i < INPUTS ? network_input(i)->bytes : network_output(i - INPUTS)->bytes;
    const size_t whole = (bytes + NETWORK_ALIGNMENT - 1) / NETWORK_ALIGNMENT * NETWORK_ALIGNMENT;
    buffers[i] = (network_buffer){aligned_alloc(NETWORK_ALIGNMENT, whole), bytes};
    if (!buffers[i].data) return failed("memory");
    if (i < INPUTS && fread(buffers[i].data, 1, bytes, stdin) != bytes) return failed("inputs");
  }
  network_instance *net;
  const unsigned threads = count > 1 ? (unsigned)strtoul(words[1], NULL, 10) : 0;
  if (network_create(threads, &net) != NETWORK_OK) return failed("create");
  if (network_run(net, buffers, INPUTS, buffers + INPUTS, OUTPUTS) != NETWORK_OK)
    return failed("run");
  network_destroy(net);
  for (size_t i = INPUTS; i < INPUTS + OUTPUTS; ++i)
    if (fwrite(buffers[i].data, 1, buffers[i].bytes, stdout) != buffers[i].bytes)
      return failed("outputs");
  return fflush(stdout) ? failed("outputs") : 0;
}
