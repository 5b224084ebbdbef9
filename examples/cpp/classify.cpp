// SPDX-License-Identifier: Apache-2.0
// classify_cpp PHOTO.ppm [THREADS]: the five likeliest classes, one a line: index, probability.
#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <exception>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "attendnext.hpp"
#include "image.h"

namespace {

constexpr image_recipe kRecipe = {ATTENDNEXT_RESIZE, ATTENDNEXT_CROP,
                                  static_cast<float>(ATTENDNEXT_SCALE), ATTENDNEXT_MEAN,
                                  ATTENDNEXT_STD};

struct Photo {
  explicit Photo(const std::string &path) {
    if (const char *problem = image_read_ppm(path.c_str(), &data))
      throw std::runtime_error(path + ": " + problem);
  }
  ~Photo() { image_free(&data); }
  Photo(const Photo &) = delete;
  Photo &operator=(const Photo &) = delete;

  image data{};
};

bool read_number(const char *word, unsigned &number) {
  const char *const end = word + std::strlen(word);
  const auto [rest, error] = std::from_chars(word, end, number);
  return error == std::errc() && rest == end;
}

std::vector<std::pair<std::size_t, double>> ranked(const attendnext::Buffer<float> &scores,
                                                   std::size_t top) {
  const float largest = *std::max_element(scores.begin(), scores.end());
  double sum = 0;
  for (const float score : scores) sum += std::exp(double(score - largest));
  std::vector<std::size_t> order(scores.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return scores[a] > scores[b]; });
  order.resize(std::min(top, order.size()));
  std::vector<std::pair<std::size_t, double>> result;
  for (const std::size_t index : order)
    result.emplace_back(index, std::exp(double(scores[index] - largest)) / sum);
  return result;
}

}  // namespace

int main(int count, char **words) try {
  unsigned threads = 0;
  if (count < 2 || count > 3 || (count == 3 && !read_number(words[2], threads))) {
    std::fprintf(stderr, "usage: %s PHOTO.ppm [THREADS]\n", words[0]);
    return 2;
  }
  attendnext::Network net(threads);
  attendnext::Buffer<float> input(net.input()), scores(net.output());
  const Photo photo(words[1]);
  if (const char *problem = image_to_tensor(&photo.data, &kRecipe, input.data()))
    throw std::runtime_error(std::string(words[1]) + ": " + problem);
  net.run({input}, {scores});
  for (const auto &[index, probability] : ranked(scores, 5))
    std::printf("%zu\t%.6f\n", index, probability);
  return 0;
} catch (const std::exception &error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
