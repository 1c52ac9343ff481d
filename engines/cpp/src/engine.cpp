#include "engine.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>

#include "error.h"
#include "half.h"

namespace r2mrf_internal {
namespace {

using Clock = std::chrono::steady_clock;

constexpr double kSmallestSide = 32;
constexpr double kLongest = 640;  // as LONGEST in predict.py: networks learn blur at about this scale

double ms_between(Clock::time_point start, Clock::time_point end) {
  return std::chrono::duration<double, std::milli>(end - start).count();
}

// Which dimensions of the input are height and width.
std::array<std::size_t, 2> spatial(const TensorSpec &spec) {
  return spec.layout == "NCHW" ? std::array<std::size_t, 2>{2, 3} : std::array<std::size_t, 2>{1, 2};
}

void check_is_detector(const Manifest &manifest, const std::string &name) {
  if (manifest.inputs.size() != 1 || manifest.inputs[0].layout.empty()) {
    throw ArtifactError(name + ": it does not say how its input takes an image");
  }
  const TensorSpec &input = manifest.inputs[0];
  const bool bytes = input.layout == "NHWC";
  const auto dtype = dtype_of(input.dtype);
  const std::size_t channels = bytes ? 3 : 1;
  if (input.shape.size() != 4 || input.shape[channels] != 3 || (dtype == Dtype::uint8) != bytes ||
      dtype == Dtype::other) {
    throw ArtifactError(name + ": an image goes into uint8 NHWC or float NCHW of 3 channels, not " + input.words());
  }
  const auto map = std::find_if(manifest.outputs.begin(), manifest.outputs.end(),
                                [](const TensorSpec &spec) { return spec.name == "map"; });
  if (map == manifest.outputs.end()) throw ArtifactError(name + " has no output \"map\"");
  if (const auto kind = dtype_of(map->dtype); kind != Dtype::float32 && kind != Dtype::float16) {
    throw ArtifactError(name + ": a map is float32 or float16, not " + map->words());
  }
  if (const auto largest = manifest.largest.find(input.name);
      largest != manifest.largest.end() &&
      (largest->second.size() != 4 || std::count(largest->second.begin(), largest->second.end(), kFree) != 0)) {
    throw ArtifactError(name + ": the profile of " + input.name + " has no largest shape of 4 sizes");
  }
}

// (x / 255 - mean) / std in single precision, channel by channel; convert makes it the network's type.
template <typename T, typename Convert>
void normalise(const std::vector<std::uint8_t> &pixels, const Preprocess &with, T *out, Convert convert) {
  for (std::size_t c = 0; c < 3; ++c) {
    for (std::size_t i = c; i < pixels.size(); i += 3) {
      *out++ = convert((static_cast<float>(pixels[i]) / 255.0F - with.mean[c]) / with.std[c]);
    }
  }
}

}  // namespace

// A context of the engine's, for as long as one run needs it.
class Engine::Lease {
 public:
  explicit Lease(Engine &engine) : engine_(engine) {
    {
      const std::lock_guard<std::mutex> lock(engine.mutex_);
      if (!engine.idle_.empty()) {
        context_ = std::move(engine.idle_.back());
        engine.idle_.pop_back();
      }
    }
    if (!context_) context_ = engine.backend_->context();
  }
  Lease(const Lease &) = delete;
  Lease &operator=(const Lease &) = delete;
  // A context that failed is not used again: it may be in any state.
  ~Lease() = default;

  ExecutionContext &context() { return *context_; }

  void give_back() {
    const std::lock_guard<std::mutex> lock(engine_.mutex_);
    engine_.idle_.push_back(std::move(context_));
  }

 private:
  Engine &engine_;
  std::unique_ptr<ExecutionContext> context_;
};

Engine::Engine(const std::filesystem::path &artifact, std::uint32_t threads) {
  std::error_code unknown;  // a name too long and the like: no such file either
  if (!std::filesystem::is_regular_file(artifact, unknown)) throw InputError(artifact.string() + ": no such file");
  manifest_ = contract_of(artifact);
  check_is_detector(manifest_, artifact.string());
  backend_ = open_backend(artifact, manifest_, threads);
  device_ = backend_->device();
  const TensorSpec &input = manifest_.inputs[0];
  const auto [y, x] = spatial(input);
  if (input.shape[y] != kFree && input.shape[x] != kFree) {
    fixed_[0] = static_cast<std::uint32_t>(input.shape[y]);
    fixed_[1] = static_cast<std::uint32_t>(input.shape[x]);
  }
}

r2mrf_times Engine::run(const Pixels &image, const RowSink &sink) {
  const auto begin = Clock::now();
  Lease lease(*this);
  const Shape shape = input_shape(image);
  fill(lease.context().input(shape), shape, image);
  const auto prepared = Clock::now();
  const RawMap raw = lease.context().infer();
  const auto inferred = Clock::now();
  const std::size_t count = std::size_t{raw.height} * raw.width;
  std::vector<float> widened;
  const auto *map = static_cast<const float *>(raw.data);
  if (raw.dtype == Dtype::float16) {
    const auto *halves = static_cast<const std::uint16_t *>(raw.data);
    widened.resize(count);
    std::transform(halves, halves + count, widened.begin(), float_from);
    map = widened.data();
  }
  if (!std::all_of(map, map + count, [](float v) { return std::isfinite(v); })) {
    throw ArtifactError("the map is not finite: the artifact's weights or its normalisation are damaged; make it again");
  }
  std::vector<float> clipped(image.width);
  resize_map(map, raw.width, raw.height, image.width, image.height, [&](std::uint32_t y, const float *row) {
    std::transform(row, row + image.width, clipped.begin(), [](float v) { return std::clamp(v, 0.0F, 1.0F); });
    sink(y, clipped.data());
  });
  const auto &t = raw.times;
  lease.give_back();
  return {ms_between(begin, prepared), t.enqueue, t.h2d, t.compute, t.d2h, ms_between(inferred, Clock::now())};
}

// The spec's size; where that is free the image's own, scaled down in proportion to the profile's largest, or without one
// to kLongest, and not under 32 pixels a side. A free batch is 1.
Shape Engine::input_shape(const Pixels &image) const {
  const TensorSpec &spec = manifest_.inputs[0];
  Shape shape = spec.shape;
  if (shape[0] == kFree) shape[0] = 1;
  if (fixed_[0] != 0) return shape;
  const std::array<double, 2> sides{static_cast<double>(image.height), static_cast<double>(image.width)};
  const auto axes = spatial(spec);
  const auto profile = manifest_.largest.find(spec.name);
  double scale = 1;
  for (std::size_t i = 0; i < 2; ++i) {
    const double largest = profile == manifest_.largest.end() ? kLongest : static_cast<double>(profile->second[axes[i]]);
    scale = std::min(scale, largest / sides[i]);
  }
  for (std::size_t i = 0; i < 2; ++i) {
    shape[axes[i]] = static_cast<std::int64_t>(std::max(kSmallestSide, std::nearbyint(sides[i] * scale)));
  }
  return shape;
}

// One image, and in a batch of several copies of it.
void Engine::fill(void *input, const Shape &shape, const Pixels &image) const {
  const TensorSpec &spec = manifest_.inputs[0];
  const auto [y, x] = spatial(spec);
  const auto height = static_cast<std::uint32_t>(shape[y]);
  const auto width = static_cast<std::uint32_t>(shape[x]);
  const std::size_t values = std::size_t{height} * width * 3;
  const Dtype dtype = dtype_of(spec.dtype);
  if (dtype == Dtype::uint8) {
    resize_rgb(image, width, height, static_cast<std::uint8_t *>(input));
  } else {
    std::vector<std::uint8_t> pixels(values);
    resize_rgb(image, width, height, pixels.data());
    const Preprocess with = manifest_.preprocess.value_or(Preprocess{});
    if (dtype == Dtype::float32) {
      normalise(pixels, with, static_cast<float *>(input), [](float v) { return v; });
    } else {
      normalise(pixels, with, static_cast<std::uint16_t *>(input), half_from);
    }
  }
  const std::size_t bytes = values * size_of(dtype);
  for (std::int64_t n = 1; n < shape[0]; ++n) {
    std::memcpy(static_cast<std::byte *>(input) + static_cast<std::size_t>(n) * bytes, input, bytes);
  }
}

}  // namespace r2mrf_internal
