/* SPDX-License-Identifier: Apache-2.0 */
/* classify PHOTO.ppm [THREADS]: the five likeliest classes, one a line: index, probability. */
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "attendnext.h"
#include "image.h"

enum { CLASSES = ATTENDNEXT_OUTPUT_0_BYTES / sizeof(float), TOP = 5 };

/* Buffers live as long as the program and are aligned as the network wants them. */
static _Alignas(ATTENDNEXT_ALIGNMENT) float input[ATTENDNEXT_INPUT_0_BYTES / sizeof(float)];
static _Alignas(ATTENDNEXT_ALIGNMENT) float scores[CLASSES];

static void print_top(void) {
  float largest = scores[0];
  for (int i = 1; i < CLASSES; ++i) largest = scores[i] > largest ? scores[i] : largest;
  double sum = 0;
  for (int i = 0; i < CLASSES; ++i) sum += exp((double)(scores[i] - largest));
  for (int place = 0; place < TOP && place < CLASSES; ++place) {
    int best = 0;
    for (int i = 1; i < CLASSES; ++i) best = scores[i] > scores[best] ? i : best;
    printf("%d\t%.6f\n", best, exp((double)(scores[best] - largest)) / sum);
    scores[best] = -INFINITY;
  }
}

int main(int count, char **words) {
  char *end = NULL;
  const unsigned long threads = count == 3 ? strtoul(words[2], &end, 10) : 0;
  if (count < 2 || count > 3 || (count == 3 && (end == words[2] || *end != '\0'))) {
    fprintf(stderr, "usage: %s PHOTO.ppm [THREADS]\n", words[0]);
    return 2;
  }
  const image_recipe recipe = {ATTENDNEXT_RESIZE, ATTENDNEXT_CROP, (float)ATTENDNEXT_SCALE,
                               ATTENDNEXT_MEAN, ATTENDNEXT_STD};
  image photo;
  const char *problem = image_read_ppm(words[1], &photo);
  if (problem) {
    fprintf(stderr, "%s: %s\n", words[1], problem);
    return 1;
  }
  problem = image_to_tensor(&photo, &recipe, input);
  image_free(&photo);
  if (problem) {
    fprintf(stderr, "%s: %s\n", words[1], problem);
    return 1;
  }

  attendnext_instance *net;
  const attendnext_buffer in = {input, sizeof input}, out = {scores, sizeof scores};
  int status = attendnext_create(threads < UINT_MAX ? (unsigned)threads : UINT_MAX, &net);
  if (status == ATTENDNEXT_OK) {
    status = attendnext_run(net, &in, 1, &out, 1);
    attendnext_destroy(net);
  }
  if (status != ATTENDNEXT_OK) {
    fprintf(stderr, "%s (status %d)\n", attendnext_last_error(), status);
    return 1;
  }
  print_top();
  return 0;
}
