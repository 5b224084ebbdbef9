/* SPDX-License-Identifier: Apache-2.0 */
#include "image.h"

#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { LARGEST = 32768 };

/* The next number of a PPM header, behind spaces and comments; -1 if there is none. */
static int read_number(FILE *file) {
  int next = fgetc(file);
  while (isspace(next) || next == '#') {
    if (next == '#')
      while (next != '\n' && next != EOF) next = fgetc(file);
    next = fgetc(file);
  }
  if (!isdigit(next)) return -1;
  int number = 0;
  for (; isdigit(next); next = fgetc(file)) {
    number = number * 10 + (next - '0');
    if (number > LARGEST) return -1;
  }
  /* One space ends the header; anything else would be the first pixel. */
  return isspace(next) ? number : -1;
}

static const char *read_pixels(FILE *file, image *result) {
  if (fgetc(file) != 'P' || fgetc(file) != '6') return "it is not a binary PPM (P6)";
  const int width = read_number(file), height = read_number(file), most = read_number(file);
  if (width < 1 || height < 1) return "its header has no size, or one above 32768";
  if (most != 255) return "it does not have 8 bits a colour";
  const size_t size = (size_t)width * (size_t)height * 3;
  unsigned char *const pixels = malloc(size);
  if (!pixels) return "there is no memory for it";
  if (fread(pixels, 1, size, file) != size) {
    free(pixels);
    return "it ends too early";
  }
  *result = (image){width, height, pixels};
  return NULL;
}

const char *image_read_ppm(const char *path, image *result) {
  FILE *const file = fopen(path, "rb");
  if (!file) return "it cannot be opened";
  const char *const problem = read_pixels(file, result);
  fclose(file);
  return problem;
}

void image_free(image *picture) {
  free(picture->pixels);
  picture->pixels = NULL;
}

/* The pixels under one output pixel, and their weights: a triangle, as wide as the reduction lest
 * it alias. `weights` has room for all pixels of the axis. Returns how many there are. */
static int taps(int length, int size, int crop, int at, int *first, float *weights) {
  const double scale = (double)length / size, support = scale > 1 ? scale : 1;
  const double centre = (lrint((size - crop) / 2.0) + at + 0.5) * scale;
  const int from = (int)(centre - support + 0.5), to = (int)(centre + support + 0.5);
  *first = from > 0 ? from : 0;
  const int count = (to < length ? to : length) - *first;
  double sum = 0;
  for (int i = 0; i < count; ++i) {
    const double weight = 1 - fabs(*first + i + 0.5 - centre) / support;
    weights[i] = weight > 0 ? (float)weight : 0;
    sum += weights[i];
  }
  for (int i = 0; i < count; ++i) weights[i] /= (float)sum;
  return count;
}

static int longer(int a, int b) { return a > b ? a : b; }

const char *image_to_tensor(const image *picture, const image_recipe *recipe, float *tensor) {
  const int width = picture->width, height = picture->height, crop = recipe->crop;
  const int rows = longer(recipe->resize, (int)((long)recipe->resize * height / width));
  const int columns = longer(recipe->resize, (int)((long)recipe->resize * width / height));
  float *const strip = malloc(sizeof(float) * 3 * (size_t)crop * (size_t)width);
  float *const weights = malloc(sizeof(float) * (size_t)longer(width, height));
  if (!strip || !weights) {
    free(strip);
    free(weights);
    return "there is no memory to resize it";
  }

  /* The rows first: strip [crop][width][3]. */
  for (int y = 0, first; y < crop; ++y) {
    const int count = taps(height, rows, crop, y, &first, weights);
    for (int x = 0; x < 3 * width; ++x) {
      float sum = 0;
      for (int i = 0; i < count; ++i)
        sum += weights[i] * picture->pixels[(size_t)(first + i) * 3 * (size_t)width + (size_t)x];
      strip[(size_t)y * 3 * (size_t)width + (size_t)x] = sum;
    }
  }
  /* Then the columns, into planes of one colour each. */
  for (int x = 0, first; x < crop; ++x) {
    const int count = taps(width, columns, crop, x, &first, weights);
    for (int y = 0; y < crop; ++y) {
      const float *const row = strip + (size_t)y * 3 * (size_t)width;
      for (int c = 0; c < 3; ++c) {
        float sum = 0;
        for (int i = 0; i < count; ++i) sum += weights[i] * row[3 * (first + i) + c];
        tensor[(c * crop + y) * crop + x] =
            (sum * recipe->scale - recipe->mean[c]) / recipe->std[c];
      }
    }
  }
  free(strip);
  free(weights);
  return NULL;
}
