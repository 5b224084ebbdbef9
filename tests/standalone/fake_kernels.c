/* SPDX-License-Identifier: Apache-2.0 */
/* Kernels in C, so that a sanitizer sees inside of them: each part reads what others wrote. */
#include <stdint.h>

enum { N = 4096, PARTS = 16, SHARE = N / PARTS };

/* y[i] = 2 x[i] */
void network_kernel_double(const float *x, float *y, int32_t first, int32_t last) {
  for (int i = first * SHARE; i < last * SHARE; ++i) y[i] = 2 * x[i];
}

/* y[i] = x[N - 1 - i] + w[i]: by way of scratch of its own */
void network_kernel_reverse(const float *x, const float *w, float *y, float *own, int32_t first,
                            int32_t last) {
  for (int part = first; part < last; ++part) {
    for (int i = 0; i < SHARE; ++i) own[i] = x[N - 1 - (part * SHARE + i)];
    for (int i = 0; i < SHARE; ++i) y[part * SHARE + i] = own[i] + w[part * SHARE + i];
  }
}

/* partial[p] = sum of a part; then, on one thread, y[i] = sum of all parts + i */
void network_kernel_sum_0(const float *x, float *partial, int32_t first, int32_t last) {
  for (int part = first; part < last; ++part) {
    partial[part] = 0;
    for (int i = part * SHARE; i < (part + 1) * SHARE; ++i) partial[part] += x[i];
  }
}

void network_kernel_sum_1(float *y, const float *partial) {
  float sum = 0;
  for (int part = 0; part < PARTS; ++part) sum += partial[part];
  for (int i = 0; i < N; ++i) y[i] = sum + (float)i;
}
