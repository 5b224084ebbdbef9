// SPDX-License-Identifier: Apache-2.0
// The C interface for C++17: owned, aligned, and with exceptions.
//
//     network::Network net;                       // or Network(4) for four threads
//     network::Buffer<float> x(net.input());      // fill it
//     network::Buffer<float> y(net.output());
//     net.run({x}, {y});
#ifndef NETWORK_HPP_
#define NETWORK_HPP_

#include <cstddef>
#include <cstdlib>
#include <initializer_list>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>

#include "network.h"

namespace network {

// A call that failed, with the C interface's status and text.
class Error : public std::runtime_error {
 public:
  explicit Error(int status) : std::runtime_error(network_last_error()), status_(status) {}
  int status() const noexcept { return status_; }

 private:
  int status_;
};

// Memory for one tensor, aligned as the network wants it.
template <typename T>
class Buffer {
 public:
  explicit Buffer(const network_spec &spec)
      : size_(spec.bytes / sizeof(T)), bytes_(spec.bytes), data_(allocate(spec.bytes)) {}

  T *data() noexcept { return data_.get(); }
  const T *data() const noexcept { return data_.get(); }
  std::size_t size() const noexcept { return size_; }
  T *begin() noexcept { return data(); }
  T *end() noexcept { return data() + size_; }
  const T *begin() const noexcept { return data(); }
  const T *end() const noexcept { return data() + size_; }
  T &operator[](std::size_t index) noexcept { return data()[index]; }
  const T &operator[](std::size_t index) const noexcept { return data()[index]; }

  operator network_buffer() noexcept { return {data(), bytes_}; }

 private:
  struct Free {
    void operator()(T *pointer) const noexcept { std::free(pointer); }
  };

  static T *allocate(std::size_t bytes) {
    const std::size_t whole = (bytes + NETWORK_ALIGNMENT - 1) / NETWORK_ALIGNMENT;
    void *const memory = std::aligned_alloc(NETWORK_ALIGNMENT, whole * NETWORK_ALIGNMENT);
    if (memory == nullptr) throw std::bad_alloc();
    return static_cast<T *>(memory);
  }

  std::size_t size_;
  std::size_t bytes_;
  std::unique_ptr<T, Free> data_;
};

// One instance; moves, never copies.
class Network {
 public:
  explicit Network(unsigned threads = 0) {
    if (network_get_info()->abi != NETWORK_ABI)
      throw std::runtime_error("the library is not the one of this header");
    network_instance *instance = nullptr;
    const int status = network_create(threads, &instance);
    if (status != NETWORK_OK) throw Error(status);
    instance_.reset(instance);
  }

  void run(std::initializer_list<network_buffer> inputs,
           std::initializer_list<network_buffer> outputs) {
    const int status = network_run(instance_.get(), inputs.begin(), inputs.size(),
                                   outputs.begin(), outputs.size());
    if (status != NETWORK_OK) throw Error(status);
  }

  unsigned threads() const noexcept { return network_threads(instance_.get()); }

  static const network_info &info() noexcept { return *network_get_info(); }
  static const network_spec &input(std::size_t index = 0) { return at(network_input(index)); }
  static const network_spec &output(std::size_t index = 0) { return at(network_output(index)); }

 private:
  struct Destroy {
    void operator()(network_instance *instance) const noexcept { network_destroy(instance); }
  };

  static const network_spec &at(const network_spec *spec) {
    if (spec == nullptr) throw std::out_of_range("the network has no such tensor");
    return *spec;
  }

  std::unique_ptr<network_instance, Destroy> instance_;
};

}  // namespace network

#endif  // NETWORK_HPP_
