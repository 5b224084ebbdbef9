/* SPDX-License-Identifier: Apache-2.0 */
/* From a picture to the numbers that a network takes. */
#ifndef IMAGE_H_
#define IMAGE_H_

#ifdef __cplusplus
extern "C" {
#endif

/* 8-bit RGB, row by row. */
typedef struct image {
  int width;
  int height;
  unsigned char *pixels;
} image;

typedef struct image_recipe {
  int resize; /* the short side becomes this long */
  int crop;   /* then the middle crop x crop is cut out */
  float scale;
  float mean[3];
  float std[3];
} image_recipe;

/* Read a binary PPM (P6, 8 bits). Returns NULL, or what is wrong. Any decoder writes PPM:
 * `djpeg photo.jpg > photo.ppm`, `convert photo.jpg photo.ppm`. */
const char *image_read_ppm(const char *path, image *result);

void image_free(image *picture);

/* Write float [3][crop][crop], (pixel * scale - mean) / std, resized as Pillow and torchvision do
 * (bilinear, antialiased). Returns NULL, or what is wrong. */
const char *image_to_tensor(const image *picture, const image_recipe *recipe, float *tensor);

#ifdef __cplusplus
}
#endif

#endif /* IMAGE_H_ */
