// The C API as C++17: an engine that closes itself, images without pointer arithmetic, failures as exceptions.
#ifndef R2MRF_HPP
#define R2MRF_HPP

#include <r2mrf/r2mrf.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace r2mrf {

// The exception that all functions here throw, with the C API's status and message.
class Error : public std::runtime_error {
 public:
  Error(r2mrf_status status, const char *message) : std::runtime_error(message), status_(status) {}
  [[nodiscard]] r2mrf_status status() const noexcept { return status_; }

 private:
  r2mrf_status status_;
};

inline void check(r2mrf_status status) {
  if (status != R2MRF_OK) throw Error(status, r2mrf_last_error());
}

// Refers to the caller's pixels. A stride of 0 means rows without gaps.
struct ImageView {
  const std::uint8_t *pixels = nullptr;
  std::uint32_t width = 0;
  std::uint32_t height = 0;
  std::size_t stride = 0;
  r2mrf_color color = R2MRF_RGB;
};

template <typename T>
struct Map {
  std::uint32_t width = 0;
  std::uint32_t height = 0;
  std::vector<T> values;  // height rows of width
};

struct Size {
  std::uint32_t height = 0;
  std::uint32_t width = 0;
};

class Engine {
 public:
  explicit Engine(const std::string &artifact, std::uint32_t threads = 0) {
    r2mrf_engine *opened = nullptr;
    check(r2mrf_open(artifact.c_str(), threads, &opened));
    engine_.reset(opened);
  }

  // The map as floats in [0, 1].
  [[nodiscard]] Map<float> run(const ImageView &image) const { return run<float>(image, r2mrf_run_f32); }

  // The map as bytes, 255 = in focus.
  [[nodiscard]] Map<std::uint8_t> run_u8(const ImageView &image) const {
    return run<std::uint8_t>(image, r2mrf_run_u8);
  }

  [[nodiscard]] std::string device() const {
    const char *words = r2mrf_device(engine_.get());
    if (words == nullptr) throw Error(R2MRF_USAGE, "engine is null: it was moved from");
    return words;
  }

  // 0 × 0 if the artifact leaves it free.
  [[nodiscard]] Size input_size() const {
    Size size;
    check(r2mrf_input_size(engine_.get(), &size.height, &size.width));
    return size;
  }

 private:
  template <typename T, typename Run>
  Map<T> run(const ImageView &image, Run *with) const {
    Map<T> map{image.width, image.height, room<T>(image.width, image.height)};
    const std::size_t stride = image.stride ? image.stride : std::size_t{image.width} * 3;
    check(with(engine_.get(), image.pixels, image.width, image.height, stride, image.color, map.values.data(),
               std::size_t{image.width} * sizeof(T)));
    return map;
  }

  template <typename T>
  static std::vector<T> room(std::size_t width, std::size_t height) {
    try {
      if (height != 0 && width > std::vector<T>().max_size() / height) throw std::bad_alloc();
      return std::vector<T>(width * height);
    } catch (const std::bad_alloc &) {
      const auto size = std::to_string(width) + "x" + std::to_string(height);
      throw Error(R2MRF_INPUT, ("not enough memory for the map of an image of " + size + " pixels").c_str());
    }
  }

  struct Close {
    void operator()(r2mrf_engine *engine) const noexcept { r2mrf_close(engine); }
  };
  std::unique_ptr<r2mrf_engine, Close> engine_;
};

// The times of the calling thread's last run.
inline r2mrf_times last_times() {
  r2mrf_times times{};
  check(r2mrf_last_times(&times));
  return times;
}

}  // namespace r2mrf
#endif
